//! The sizes of images in the README, and those of a build.

use std::fs;

use anyhow::{Context, Result, bail};

use cargo_xen::build::{self, Flavour};
use cargo_xen::paths;
use cargo_xen::say;
use cargo_xen::say::grouped;
use cargo_xen::setup;

/// How far a size may be from that of a build, in per cent.
const TOLERANCE: f64 = 1.0;

/// The smallest number of bytes that is taken for an image's size: buffers and packets are smaller.
const SMALLEST: u64 = 10_000;

/// A size in the README: the first cell of its row, and how the image is built.
struct Row {
    cell: &'static str,
    /// More of cargo's options.
    options: &'static [&'static str],
}

const ROWS: [Row; 2] = [
    Row { cell: "| hello, stripped |", options: &[] },
    Row {
        cell: "| hello without the feature `shutdown`, stripped |",
        options: &["--no-default-features", "--features", "domu/allocator"],
    },
];

/// A size as the README states it, and as it is.
pub struct Size {
    cell: &'static str,
    stated: Option<u64>,
    built: u64,
}

impl Size {
    fn is_right(&self) -> bool {
        self.stated.is_some_and(|stated| differs(stated, self.built) <= TOLERANCE)
    }
}

/// By how many per cent two sizes differ.
fn differs(stated: u64, built: u64) -> f64 {
    (stated as f64 / built as f64 - 1.0).abs() * 100.0
}

fn readme() -> Result<String> {
    let path = paths::workspace().join("README.md");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// `None` where this compiler's sizes can be compared with the README's; else the reason why not.
pub fn other_compiler() -> Result<Option<String>> {
    let (text, compiler) = (readme()?, setup::compiler()?);
    let named = named_compiler(&text)?;
    let same = compiler.split_whitespace().nth(1) == Some(&*named);
    Ok((!same).then(|| format!("the README's sizes are of Rust {named}, and this is {compiler}")))
}

/// The version in "sizes with Rust 1.95.0".
fn named_compiler(text: &str) -> Result<String> {
    let (_, rest) = text.split_once("sizes with Rust ").context("README.md names no `sizes with Rust VERSION`")?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(version.trim_end_matches('.').to_owned())
}

/// The size that a row states: the number in its second cell.
fn stated(text: &str, cell: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(cell))?;
    let (number, _) = rest.trim_start().split_once(" bytes")?;
    number.replace(',', "").parse().ok()
}

/// The sizes in a text: numbers of bytes that are large enough for an image.
fn sizes(text: &str) -> Vec<u64> {
    let ends = text.match_indices(" bytes").map(|(end, _)| &text[..end]);
    let numbers = ends.filter_map(|before| {
        let start = before.rfind(|c: char| !c.is_ascii_digit() && c != ',').map_or(0, |at| at + 1);
        before[start..].replace(',', "").parse().ok()
    });
    numbers.filter(|number| *number >= SMALLEST).collect()
}

/// The predecessor's hello, which is not built here.
const PREDECESSOR: u64 = 66_912;

/// Builds what the README has sizes of.
fn measured(text: &str) -> Result<Vec<Size>> {
    let folder = paths::target().join("beside");
    let size = |row: &Row| {
        let images = build::named_with(&folder, &paths::workspace(), &["hello"], Flavour::Hardened, row.options)?;
        let image = images.first().context("building hello gave nothing")?;
        Ok(Size { cell: row.cell, stated: stated(text, row.cell), built: image.size })
    };
    ROWS.iter().map(size).collect()
}

/// Compares each size in the README with a build.
pub fn check() -> Result<()> {
    let text = readme()?;
    let sizes_of_images = measured(&text)?;
    let known: Vec<u64> = sizes_of_images.iter().filter_map(|size| size.stated).chain([PREDECESSOR]).collect();
    if let Some(other) = sizes(&text).into_iter().find(|size| !known.contains(size)) {
        bail!("README.md has a size that no build is compared with: {} bytes", grouped(other));
    }
    match sizes_of_images.iter().find(|size| !size.is_right()) {
        Some(size) => bail!(
            "README.md, {} {} bytes; a build has {} (`cargo xen sizes` tells all)",
            size.cell,
            size.stated.map_or("no".into(), grouped),
            grouped(size.built)
        ),
        None => Ok(()),
    }
}

/// `cargo xen sizes`: what the README is to say.
pub fn run() -> Result<()> {
    if let Some(why) = other_compiler()? {
        say!("warning: {why}");
    }
    for size in measured(&readme()?)? {
        let verdict = if size.is_right() { "within 1 %" } else { "to be changed" };
        println!(
            "{} {} bytes | README: {}, {verdict}",
            size.cell,
            grouped(size.built),
            size.stated.map_or("none".into(), grouped)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "| a | 185,144 bytes | 66,912 bytes |\n4096 bytes; sizes with Rust 1.95.0; time\n";

    #[test]
    fn sizes_are_found_in_a_text() {
        assert_eq!(sizes(TEXT), [185_144, 66_912]);
        assert_eq!(stated(TEXT, "| a |"), Some(185_144));
        assert_eq!(stated(TEXT, "| b |"), None);
        assert_eq!(named_compiler(TEXT).unwrap(), "1.95.0");
        assert!(named_compiler("no version").is_err());
    }

    #[test]
    fn size_beyond_one_percent_is_wrong() {
        let right = |stated, built| Size { cell: "", stated, built }.is_right();
        assert!(right(Some(100_900), 100_000) && right(Some(99_100), 100_000));
        assert!(!right(Some(101_100), 100_000) && !right(Some(98_900), 100_000) && !right(None, 100_000));
    }
}
