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
}
