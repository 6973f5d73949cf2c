//! Takes files out of the README, so that what it tells newcomers to write is what a test writes.
//!
//! A fence after a comment that names a file, `<!-- file: Cargo.toml -->`, is that file's content.

use anyhow::{Result, bail};

/// The files that a text shows, with their paths.
pub fn files(text: &str) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut named = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(path) = line.strip_prefix("<!-- file:").and_then(|rest| rest.strip_suffix("-->")) {
            named = Some(path.trim().to_owned());
            continue;
        }
        if !line.starts_with("```") {
            if let (Some(path), false) = (&named, line.is_empty()) {
                bail!("no fence follows where {path} is announced");
            }
            continue;
        }
        let mut content = String::new();
        loop {
            match lines.next() {
                Some(line) if line.trim_start().starts_with("```") => break,
                Some(line) => {
                    content.push_str(line);
                    content.push('\n');
                }
                None => bail!("the fence {line:?} has no end"),
            }
        }
        if let Some(path) = named.take() {
            if path.starts_with('/') || path.split('/').any(|part| part == "..") {
                bail!("{path} is outside the crate");
            }
            files.push((path, content));
        }
    }
    Ok(files)
}

/// Replaces the dependency on `domu` in a manifest by a path.
pub fn with_path(manifest: &str, path: &str) -> Result<String> {
    let mut replaced = 0;
    let mut out = String::new();
    for line in manifest.lines() {
        let key = line.split('=').next().unwrap_or_default().trim();
        if key == "domu" {
            replaced += 1;
            out.push_str(&format!("domu = {{ path = {} }}", serde_json::Value::from(path)));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    if replaced != 1 {
        bail!("the manifest has {replaced} lines with the dependency `domu = ...` instead of one");
    }
    Ok(out)
}

/// The lines of a text that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// A link definition: `[label]: address`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (label, rest) = line.strip_prefix('[')?.split_once(']')?;
    Some((label, rest.strip_prefix(": ")?.trim()))
}

/// The addresses of all links: those in the text, and those of definitions.
pub fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        links.extend(definition(line).map(|(_, address)| address.to_owned()));
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.extend(inline.map(|(address, _)| address.to_owned()));
    }
    links
}

/// Labels in brackets that have neither an address nor a definition: a Git host shows the brackets.
pub fn undefined(text: &str) -> Vec<String> {
    let defined: Vec<&str> = prose(text).filter_map(definition).map(|(label, _)| label).collect();
    let mut undefined = Vec::new();
    for line in prose(text).filter(|line| definition(line).is_none()) {
        // A bracket in a code span opens no link, but a label may be a code span.
        for (place, _) in line.match_indices('[') {
            let ticks = line[..place].matches('`').count();
            let Some((label, rest)) = line[place + 1..].split_once(']') else { continue };
            let is_link = ticks % 2 == 0 && !rest.starts_with('(') && !rest.starts_with('[');
            if is_link && !defined.contains(&label) {
                undefined.push(label.to_owned());
            }
        }
    }
    undefined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_with_a_name() {
        let text = "# x\n\n```sh\ncargo build\n```\n\n<!-- file: Cargo.toml -->\n```toml\n[package]\n\nname = 1\n```\n\
                    text\n<!-- file: src/main.rs -->\n\n```rust,no_run\nfn main() {}\n```\n";
        let found = files(text).unwrap();
        assert_eq!(
            found,
            [("Cargo.toml".into(), "[package]\n\nname = 1\n".into()), ("src/main.rs".into(), "fn main() {}\n".into())]
        );
    }

    #[test]
    fn what_is_announced_must_come_and_end() {
        assert!(files("<!-- file: Cargo.toml -->\n```toml\n[package]\n").is_err());
        assert!(files("<!-- file: Cargo.toml -->\ntext\n```toml\n```\n").is_err());
    }

    #[test]
    fn files_stay_inside() {
        assert!(files("<!-- file: /etc/passwd -->\n```\n```\n").is_err());
        assert!(files("<!-- file: a/../../b -->\n```\n```\n").is_err());
    }

    #[test]
    fn the_dependency_becomes_a_path() {
        let manifest = "[dependencies]\ndomu = \"0.1\"\nlog = \"0.4\"\n";
        let changed = with_path(manifest, "/a b/domu").unwrap();
        assert_eq!(changed, "[dependencies]\ndomu = { path = \"/a b/domu\" }\nlog = \"0.4\"\n");
        assert!(with_path("[dependencies]\nlog = \"0.4\"\n", "/x").is_err());
    }

    const LINKS: &str =
        "[i](j) and [k](l): m\n[a](b.md) and [`c`], `#[d]`, [e][f], [f]\n```text\n[g](h)\n```\n[`c`]: https://c.org\n";

    #[test]
    fn links_are_found_outside_code() {
        assert_eq!(links(LINKS), ["j", "l", "b.md", "https://c.org"]);
    }

    #[test]
    fn labels_need_a_definition() {
        assert_eq!(undefined(LINKS), ["f", "f"]);
        assert!(undefined("[f]: g\n[e][f], [f]\n").is_empty());
    }
}
