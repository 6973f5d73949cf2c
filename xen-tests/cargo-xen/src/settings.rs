//! Settings of a project: `[package.metadata.xen]` in its manifest.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::qemu::Cpu;
use crate::setup::{self, Version};

/// How a project's unikernels run. Absent values are those of the `.xl` file, or of the tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `xen = "4.17"`: the version of Xen.
    pub xen: &'static Version,
    /// `memory = 16`: MiB.
    pub memory: Option<u32>,
    /// `maxmem = 32`: MiB that the memory map shows.
    pub maxmem: Option<u32>,
    /// `vcpus = 1`.
    pub vcpus: Option<u32>,
    /// `cmdline = "text"`: the command line.
    pub cmdline: Option<String>,
    /// `machine = "poor"`: the processor, `poor` or `rich`.
    pub machine: Cpu,
    /// `hardened = true`: whether `cargo xen run` and `cargo xen test` build hardened.
    pub hardened: bool,
    /// `net = ["bridge=xenbr0"]`: network interfaces, each in the syntax of an entry of `vif` of `xl.cfg`.
    pub net: Vec<String>,
    /// `disk = ["phy:/dev/loop0,xvda,w"]`: disks, each in the syntax of an entry of `disk` of `xl.cfg`.
    pub disk: Vec<String>,
}

/// The keys, for the message about an unknown one.
const KEYS: [&str; 9] = ["xen", "memory", "maxmem", "vcpus", "cmdline", "machine", "hardened", "net", "disk"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            xen: setup::MAIN,
            memory: None,
            maxmem: None,
            vcpus: None,
            cmdline: None,
            machine: Cpu::Poor,
            hardened: true,
            net: Vec::new(),
            disk: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the table, as `cargo metadata` has it; null is an empty one.
    ///
    /// # Errors
    ///
    /// An unknown key, or a value of the wrong type: one sentence that names the key.
    pub fn read(table: &Value) -> Result<Self> {
        let mut settings = Self::default();
        let entries = match table {
            Value::Null => return Ok(settings),
            Value::Object(entries) => entries,
            _ => bail!("[package.metadata.xen] is not a table"),
        };
        for (key, value) in entries {
            settings.set(key, value).with_context(|| format!("[package.metadata.xen], key `{key}`"))?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        match key {
            "xen" => self.xen = setup::version(text(value)?)?,
            "memory" => self.memory = Some(number(value)?),
            "maxmem" => self.maxmem = Some(number(value)?),
            "vcpus" => self.vcpus = Some(number(value)?),
            "cmdline" => self.cmdline = Some(text(value)?.to_owned()),
            "machine" => {
                self.machine = match text(value)? {
                    "poor" => Cpu::Poor,
                    "rich" => Cpu::Rich,
                    other => bail!("no machine `{other}`; there are poor, rich"),
                }
            }
            "hardened" => self.hardened = value.as_bool().context("expected true or false")?,
            "net" => self.net = texts(value)?,
            "disk" => self.disk = texts(value)?,
            _ => bail!("unknown key; there are {}", KEYS.join(", ")),
        }
        Ok(())
    }

    /// Fails if there are devices, which the machine does not have yet.
    ///
    /// # Errors
    ///
    /// `net` or `disk` is not empty: one sentence that names the key.
    pub fn without_devices(&self) -> Result<()> {
        for (key, devices) in [("net", &self.net), ("disk", &self.disk)] {
            if !devices.is_empty() {
                bail!("[package.metadata.xen], key `{key}`: this version of cargo xen attaches no devices");
            }
        }
        Ok(())
    }

    /// Lines of an `.xl` file for what [`Config`](crate::lab::domain::Config) has no field for.
    pub fn lines(&self) -> Vec<String> {
        let vcpus = self.vcpus.map(|count| format!("vcpus = {count}"));
        self.machine.guest_lines().into_iter().chain(vcpus).collect()
    }
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("expected a string")
}

fn texts(value: &Value) -> Result<Vec<String>> {
    let entries = value.as_array().context("expected a list of strings")?;
    entries.iter().map(|entry| entry.as_str().map(String::from).context("expected a list of strings")).collect()
}

fn number(value: &Value) -> Result<u32> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|&number| number > 0).context("expected a positive number")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_keys_are_read() {
        let settings = Settings::read(&json!({
            "xen": "4.20", "memory": 32, "maxmem": 64, "vcpus": 1, "cmdline": "a b", "machine": "rich", "hardened": false,
            "net": ["bridge=a", "bridge=b"], "disk": ["c"],
        }))
        .unwrap();
        assert_eq!(
            (settings.xen.xen, settings.memory, settings.maxmem, settings.vcpus),
            ("4.20", Some(32), Some(64), Some(1))
        );
        assert_eq!((settings.cmdline.as_deref(), settings.machine, settings.hardened), (Some("a b"), Cpu::Rich, false));
        assert_eq!(
            (settings.net.as_slice(), settings.disk.as_slice()),
            (["bridge=a", "bridge=b"].map(String::from).as_slice(), ["c".into()].as_slice())
        );
        assert_eq!(Settings::read(&Value::Null).unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_name_their_key() {
        for (table, words) in [
            (json!({ "memry": 32 }), ["`memry`", "unknown key; there are xen, memory"]),
            (json!({ "memory": "32" }), ["`memory`", "expected a positive number"]),
            (json!({ "memory": 0 }), ["`memory`", "expected a positive number"]),
            (json!({ "xen": 4.17 }), ["`xen`", "expected a string"]),
            (json!({ "xen": "3.0" }), ["`xen`", "no Xen 3.0"]),
            (json!({ "machine": "old" }), ["`machine`", "there are poor, rich"]),
            (json!({ "hardened": "yes" }), ["`hardened`", "expected true or false"]),
            (json!({ "net": "bridge" }), ["`net`", "expected a list of strings"]),
            (json!({ "disk": [1] }), ["`disk`", "expected a list of strings"]),
            (json!(7), ["metadata.xen]", "not a table"]),
        ] {
            let error = format!("{:#}", Settings::read(&table).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn devices_are_refused_by_name() {
        assert!(Settings::default().without_devices().is_ok());
        let settings = Settings::read(&json!({ "disk": ["a"] })).unwrap();
        let error = settings.without_devices().unwrap_err().to_string();
        assert_eq!(error, "[package.metadata.xen], key `disk`: this version of cargo xen attaches no devices");
    }
}
