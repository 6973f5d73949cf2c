//! The emulated machine: one QEMU, its serial line read as it comes.
//!
//! No KVM and no devices beyond serial ports: every machine behaves the same, and boots fast.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, Owned};
use crate::say;
use crate::turn;

/// The processor that is emulated; see the crate's tests for why there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cpu {
    /// An old AMD processor: no RDRAND, SMEP, SMAP, UMIP, XSAVE, no pages of 1 GiB.
    Poor,
    /// All that QEMU can emulate.
    Rich,
}

impl Cpu {
    /// QEMU's name for it.
    pub fn model(self) -> &'static str {
        match self {
            Cpu::Poor => "qemu64,+svm,+npt,+nx",
            Cpu::Rich => "max",
        }
    }

    /// What Xen must be told: a PV dom0 cannot run under emulated SMAP, but guests can have it.
    pub fn xen_options(self) -> &'static str {
        match self {
            Cpu::Poor => "",
            Cpu::Rich => " smap=hvm dom0_vcpus_pin",
        }
    }

    /// What configurations of guests need: where there are vector registers, QEMU mixes up those of a guest and of dom0 on
    /// one processor, and dom0's programs end with a segmentation fault. So guests have the other one.
    pub fn guest_lines(self) -> Vec<String> {
        match self {
            Cpu::Poor => Vec::new(),
            Cpu::Rich => vec!["cpus = \"1\"".into()],
        }
    }
}

/// The command line of a machine with nothing in it yet.
///
/// One thread emulates all processors. With one for each, QEMU 7.2 mixes up what belongs to Xen and to its guests: after
/// some ten thousand events a guest had the hypervisor's registers.
pub fn machine(cpu: Cpu, memory_mb: u32, processors: u32) -> Command {
    let mut command = process::command("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-monitor", "none", "-cpu", cpu.model()])
        .args(["-m", &memory_mb.to_string(), "-smp", &processors.to_string()])
        .args(["-accel", "tcg,thread=single"])
        .args(["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"]);
    command
}

/// Adds a second serial port and gives its other end.
pub fn second_port(command: &mut Command) -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().context("making the control channel")?;
    let descriptor = theirs.as_raw_fd();
    command.arg("-chardev").arg(format!("socket,id=com2,fd={descriptor}"));
    command.args(["-serial", "chardev:com2"]);
    // SAFETY: between fork and exec the closure makes one system call, on a descriptor that the
    // caller keeps open until the program has been started.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(descriptor, libc::F_SETFD, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok((ours, theirs.into()))
}

/// Has QEMU listen for gdb at a socket among the logs, whose path this gives. Not at a port: another
/// machine, or another user, may have it or come to it.
pub fn listen_for_gdb(command: &mut Command, logs: &Path) -> Result<PathBuf> {
    let socket = logs.join("gdb");
    let text = socket.to_string_lossy().into_owned();
    // The limit is Linux's.
    ensure!(text.len() < 108, "{text} is too long a path for a socket: use a copy of the tree in another folder");
    ensure!(!text.contains(','), "{text}: QEMU takes the comma for the end of the path");
    command.args(["-gdb", &format!("unix:{text},server=on,wait=off")]);
    Ok(socket)
}

/// A machine that runs. It is killed when this is dropped.
pub struct Machine {
    child: Owned,
    serial: Serial,
    errors: PathBuf,
}

impl Machine {
    /// Starts it; `serial.log` and `qemu.log` go to the folder of logs.
    pub fn start(mut command: Command, logs: &Path) -> Result<Machine> {
        turn::take()?;
        let errors = logs.join("qemu.log");
        let mut error_file = File::create(&errors).with_context(|| format!("creating {}", errors.display()))?;
        writeln!(error_file, "{}", process::shown(&command)).context("writing qemu.log")?;
        let log = logs.join("serial.log");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(error_file)
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let output = child.stdout.take();
        let child = Owned(child);
        let serial = Serial::default();
        match output {
            Some(output) => serial.clone().follow(output, file),
            None => bail!("QEMU was started without an output"),
        }
        Ok(Machine { child, serial, errors })
    }

    /// The serial line.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.0.try_wait().context("asking whether QEMU still runs")?.is_some())
    }

    /// What QEMU itself said, for a report. The first line is its command line.
    pub fn complaints(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        text.split_once('\n').map(|(_, rest)| rest.trim_end().to_owned()).unwrap_or_default()
    }
}

/// What has come over a serial line so far.
#[derive(Clone, Default)]
pub struct Serial {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Serial {
    fn follow(self, mut from: impl Read + Send + 'static, mut file: File) {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                // The copy in memory decides; a full disk must not end the reading.
                let _ = file.write_all(&buffer[..count]);
                if say::is_verbose() {
                    let _ = std::io::stderr().write_all(&buffer[..count]);
                }
                self.lock().extend_from_slice(&buffer[..count]);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much has come: a mark for [`Serial::since`].
    pub fn length(&self) -> usize {
        self.lock().len()
    }

    /// What has come since a mark, without carriage returns.
    pub fn since(&self, mark: usize) -> String {
        let text = String::from_utf8_lossy(&self.lock()[mark..]).into_owned();
        text.replace('\r', "")
    }
}

/// The last lines of a hypervisor's log, without those that it writes for each new domain.
pub fn telling_lines(serial: &str, count: usize) -> String {
    let lines: Vec<&str> = serial.lines().filter(|line| !line.starts_with("(XEN) HVM")).collect();
    last_lines(&lines.join("\n"), count)
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Waits for a condition on the serial line, until the machine ends, or for `limit`.
pub fn wait_for(machine: &mut Machine, limit: Duration, mut found: impl FnMut(&str) -> bool) -> Result<Waited> {
    let start = Instant::now();
    loop {
        let ended = machine.has_ended()?;
        if ended {
            // What QEMU wrote last may still be on its way through the pipe.
            std::thread::sleep(Duration::from_millis(50));
        }
        if found(&machine.serial.since(0)) {
            return Ok(Waited::Found);
        }
        if ended {
            return Ok(Waited::Ended);
        }
        if start.elapsed() > limit {
            return Ok(Waited::TooLong);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How waiting ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// The condition held.
    Found,
    /// The machine has ended without it.
    Ended,
    /// The limit has passed.
    TooLong,
}
