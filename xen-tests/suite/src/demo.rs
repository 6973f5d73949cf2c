//! `cargo xen demo`: boots Xen and dom0, and the example hello as a guest.

use std::time::Duration;

use anyhow::{Context, Result};
use cargo_xen::build::{self, Flavour};
use cargo_xen::cpio::Archive;
use cargo_xen::lab::dom0::{Lab, Session};
use cargo_xen::lab::domain::{self, Config, Watch};
use cargo_xen::run::{base_config, crash_report, show};
use cargo_xen::say::grouped;
use cargo_xen::{paths, say, setup};

/// Runs it; gives the exit code.
pub fn run() -> Result<u8> {
    const NAME: &str = "hello";
    let workspace = paths::workspace();
    let image = build::named(&workspace, &[NAME], Flavour::Hardened)?.pop().context("building hello gave nothing")?;
    let logs = paths::new_logs("demo")?;
    let config = Config { base: base_config(&workspace, NAME)?, ..Config::default() };
    let mut archive = Archive::default();
    archive.file("guests/hello", 0o644, &image.read()?);
    domain::add(&mut archive, NAME, NAME, &config);
    let mut session = Session::boot(&Lab::new(setup::MAIN), archive, &logs)?;
    let version = session.xen_version()?;
    say!("xl create examples/hello.xl ({} bytes); its console:", grouped(image.size));
    let limit = Duration::from_secs(60);
    let watch = Watch { limit, most: usize::MAX, on_console: &mut |bytes| show(bytes) };
    let outcome = domain::run(&mut session, NAME, watch)?;
    println!("Xen version: {version}");
    match outcome.reason {
        Some(reason) => println!("shutdown reason: {reason}"),
        None => println!("shutdown reason: none, it did not end within {} s", limit.as_secs()),
    }
    eprint!("{}", crash_report(&outcome, &image));
    let said_hello = outcome.text().contains("hello from domain");
    if !said_hello {
        println!("it did not say hello; the logs are in {}", logs.display());
    }
    let passed = said_hello && outcome.reason == Some(domain::Reason::Poweroff);
    Ok(if passed { 0 } else { 1 })
}

#[cfg(test)]
mod tests {
    use cargo_xen::run::BASE_CONFIG;

    use super::*;

    /// The line of a key in a configuration, without spaces.
    fn value(config: &str, key: &str) -> Option<String> {
        let lines = config.lines().map(|line| line.replace(' ', ""));
        lines.into_iter().find_map(|line| line.strip_prefix(&format!("{key}=")).map(String::from))
    }

    #[test]
    fn default_configuration_is_that_of_hello() {
        let hello = base_config(&paths::workspace(), "hello").unwrap();
        for key in ["type", "memory", "vcpus", "cmdline"] {
            assert!(value(&hello, key).is_some(), "{key}");
            assert_eq!(value(BASE_CONFIG, key), value(&hello, key), "{key}");
        }
        assert_eq!(BASE_CONFIG.lines().count(), 4);
    }
}
