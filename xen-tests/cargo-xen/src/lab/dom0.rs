//! A session with Xen and its dom0: boots them, and has dom0 run command lines.
//!
//! One boot serves many guests: booting takes as long as three guests do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::control::{Control, Reply, Silence};
use super::qemu::{self, Cpu, Machine, Serial};
use crate::cpio::Archive;
use crate::say;
use crate::setup::{self, Version};

/// How long a boot may take, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How long one of dom0's commands may take when the machine is busy.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Which xenstored dom0 runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Xenstored {
    /// The one written in C.
    C,
    /// oxenstored.
    Ocaml,
}

/// The machine that a session boots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lab {
    /// The hypervisor and its dom0.
    pub version: &'static Version,
    /// The processor.
    pub cpu: Cpu,
    /// Which xenstored.
    pub xenstored: Xenstored,
    /// All of the machine's memory; dom0 has 768 MiB of it.
    pub memory_mb: u32,
    /// Count instructions instead of time: slower, but it repeats exactly.
    pub counted: bool,
    /// Listen for gdb, and be as patient as who uses it.
    pub gdb: bool,
}

impl Lab {
    /// The usual machine with this version of Xen.
    pub fn new(version: &'static Version) -> Lab {
        Lab { version, cpu: Cpu::Poor, xenstored: Xenstored::C, memory_mb: 2048, counted: false, gdb: false }
    }
}

/// A running Xen with dom0. Ends when it is dropped.
pub struct Session {
    machine: Machine,
    control: Control,
    cpu: Cpu,
    logs: PathBuf,
    /// Where gdb can attach, which stops the machine for as long as its user likes.
    gdb: Option<PathBuf>,
}

impl Session {
    /// The processor of the machine.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Boots, with more files in dom0's root.
    pub fn boot(lab: &Lab, more: Archive, logs: &Path) -> Result<Session> {
        setup::qemu()?;
        let root = setup::root(lab.version)?;
        std::fs::create_dir_all(logs).with_context(|| format!("creating {}", logs.display()))?;
        let first_root = first_root(&root, more, logs)?;
        let xen = format!(
            "loglvl=all guest_loglvl=all console=com1 dom0_mem=768M,max:768M dom0_max_vcpus=1 bootscrub=0{}",
            lab.cpu.xen_options()
        );
        let xenstored = match lab.xenstored {
            Xenstored::C => "c",
            Xenstored::Ocaml => "ocaml",
        };
        let kernel = format!(
            "{} console=hvc0 quiet loglevel=4 DOMU_XEN={} DOMU_XENSTORED={xenstored}",
            root.kernel().display(),
            lab.version.xen
        );
        // A second one takes its share of the machine, also when it is idle. It is where guests with AVX are kept apart.
        let processors = if lab.cpu == Cpu::Rich { 2 } else { 1 };
        let mut command = qemu::machine(lab.cpu, lab.memory_mb, processors);
        if lab.counted {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        let gdb = if lab.gdb { Some(qemu::listen_for_gdb(&mut command, logs)?) } else { None };
        let (ours, theirs) = qemu::second_port(&mut command)?;
        command.arg("-kernel").arg(root.xen()).args(["-append", &xen]);
        command.arg("-initrd").arg(format!("{kernel},{}", first_root.display()));
        say!("booting Xen {} with dom0 Linux ...", lab.version.xen);
        let start = Instant::now();
        let machine = Machine::start(command, logs)?;
        drop(theirs);
        let control = Control::new(ours)?;
        let mut session = Session { machine, control, cpu: lab.cpu, logs: logs.to_path_buf(), gdb };
        session.wait_until_ready()?;
        say!("... ready after {:.1} s", start.elapsed().as_secs_f64());
        Ok(session)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.control.ready_within(Duration::from_secs(1))? {
                Ok(()) => return Ok(()),
                Err(Silence::Closed) => bail!("QEMU ended during the boot\n{}", self.report()),
                Err(Silence::TooLong) if start.elapsed() < BOOT_LIMIT => {}
                Err(Silence::TooLong) => {
                    bail!("dom0 was not up after {} s\n{}", BOOT_LIMIT.as_secs(), self.report())
                }
            }
        }
    }

    /// Has dom0 run a command line; the answer has the command's own verdict.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Reply> {
        self.run_with_input(command, &[], limit)
    }

    /// The same, for a command that reads its standard input.
    pub fn run_with_input(&mut self, command: &str, input: &[u8], limit: Duration) -> Result<Reply> {
        let start = Instant::now();
        let limit = if self.gdb.is_some() { Duration::MAX } else { limit };
        let answer = self.control.run(command, input, limit)?;
        if say::is_verbose() {
            say!("dom0: {command} ({} ms)", start.elapsed().as_millis());
        }
        match answer {
            Ok(reply) => Ok(reply),
            Err(silence) => bail!(
                "dom0 did not answer `{command}` ({})\n{}",
                match silence {
                    Silence::Closed => String::from("QEMU has ended"),
                    Silence::TooLong => format!("for {} s", limit.as_secs()),
                },
                self.report()
            ),
        }
    }

    /// Writes a file in dom0, in a folder that exists. Files that are known before the boot come with [`Session::boot`], faster.
    ///
    /// # Errors
    ///
    /// dom0 cannot write the file, or does not answer.
    pub fn put(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let reply = self.run_with_input(&write_command(path), content, COMMAND_LIMIT)?;
        if reply.status != 0 {
            bail!("dom0 cannot write {path}: {}", reply.text().trim_end());
        }
        Ok(())
    }

    /// Has dom0 run a command line that must succeed.
    pub fn must(&mut self, command: &str, limit: Duration) -> Result<String> {
        let reply = self.run(command, limit)?;
        if reply.status != 0 {
            bail!("in dom0, `{command}` failed ({}):\n{}", reply.status, reply.text().trim_end());
        }
        Ok(reply.text())
    }

    /// The hypervisor's version as it says itself.
    pub fn xen_version(&mut self) -> Result<String> {
        let info = self.must("xl info", Duration::from_secs(20))?;
        let line = info.lines().find_map(|line| line.strip_prefix("xen_version"));
        match line.and_then(|line| line.split_once(':')) {
            Some((_, version)) => Ok(version.trim().to_owned()),
            None => bail!("`xl info` names no version:\n{info}"),
        }
    }

    /// Xen's and dom0's serial line.
    pub fn serial(&self) -> &Serial {
        self.machine.serial()
    }

    /// The socket at which gdb can attach, if that was wanted.
    pub fn gdb(&self) -> Option<&Path> {
        self.gdb.as_deref()
    }

    /// Where the logs of this session are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    fn report(&self) -> String {
        let mut text = format!("the serial line ends with:\n{}", qemu::telling_lines(&self.serial().since(0), 25));
        let complaints = self.machine.complaints();
        if !complaints.is_empty() {
            text.push_str(&format!("\nQEMU says:\n{complaints}"));
        }
        text.push_str(&format!("\nthe logs are in {}", self.logs.display()));
        text
    }
}

/// Puts the files of this run behind the base image, which Linux then unpacks as one.
fn first_root(root: &setup::Root, mut more: Archive, logs: &Path) -> Result<PathBuf> {
    more.file("init", 0o755, include_bytes!("dom0/init.sh"));
    more.file("agent.sh", 0o644, include_bytes!("dom0/agent.sh"));
    for name in ["block", "vif-bridge"] {
        more.file(&format!("etc/xen/scripts/{name}"), 0o755, include_bytes!("dom0/hotplug.sh"));
    }
    let base = root.base();
    let mut bytes = std::fs::read(&base).with_context(|| format!("reading {}", base.display()))?;
    bytes.extend_from_slice(&more.finish());
    let path = logs.join("dom0.cpio");
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The command that writes its input to a file, whatever characters the path has.
fn write_command(path: &str) -> String {
    format!("cat > '{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::write_command;

    #[test]
    fn path_of_a_file_is_quoted_for_the_shell() {
        assert_eq!(write_command("/run/a b"), "cat > '/run/a b'");
        assert_eq!(write_command("/run/it's"), r"cat > '/run/it'\''s'");
    }
}
