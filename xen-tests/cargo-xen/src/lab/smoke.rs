//! The two machines without a toolstack: Xen with the image as its first domain, and no Xen at all.
//!
//! The first is the fastest way onto a real hypervisor, about a second: Xen takes a PVH image as its
//! dom0. There is no xenstore and no console ring; the image's output is the hypervisor's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::domain::Reason;
use super::qemu::{self, Cpu, Machine, Waited, wait_for};
use crate::build::Image;
use crate::setup::Root;

/// What became of an image as the first domain.
#[derive(Debug)]
pub struct Ended {
    /// The serial line, Xen's own lines among it.
    pub serial: String,
    /// Why the domain ended, as Xen's messages tell; `None`: it did not, or Xen did not say.
    pub reason: Option<Reason>,
}

/// Xen's messages about the end of its first domain.
const ENDS: [(&str, Reason); 4] = [
    ("Hardware Dom0 halted", Reason::Poweroff),
    ("Hardware Dom0 shutdown: rebooting", Reason::Reboot),
    ("Hardware Dom0 crashed", Reason::Crash),
    ("Hardware Dom0 shutdown: watchdog", Reason::Watchdog),
];

/// Boots Xen with the image as its first domain, until that ends.
pub fn as_first_domain(
    root: &Root,
    image: &Image,
    cpu: Cpu,
    cmdline: &str,
    limit: Duration,
    logs: &Path,
) -> Result<Ended> {
    std::fs::create_dir_all(logs).with_context(|| format!("creating {}", logs.display()))?;
    let mut command = qemu::machine(cpu, 512, 1);
    let xen = "loglvl=all guest_loglvl=all console=com1 dom0-iommu=none dom0=pvh bootscrub=0";
    command.arg("-kernel").arg(root.xen()).args(["-append", xen]);
    command.arg("-initrd").arg(format!("{} {cmdline}", image.stripped.display()));
    let mut machine = Machine::start(command, logs)?;
    wait_for(&mut machine, limit, |serial| reason(serial).is_some())?;
    let serial = machine.serial().since(0);
    Ok(Ended { reason: reason(&serial), serial })
}

fn reason(serial: &str) -> Option<Reason> {
    ENDS.iter().find(|(message, _)| serial.contains(message)).map(|(_, reason)| *reason)
}

/// What an image said where there is no Xen.
#[derive(Debug)]
pub struct WithoutXen {
    /// On the first serial port.
    pub serial: String,
    /// On the debug port, 0xe9.
    pub debug_port: String,
    /// Whether it made the machine end.
    pub ended: bool,
}

/// How long a machine is watched after the last thing that it said.
const GRACE: Duration = Duration::from_millis(1500);

/// Starts the image under QEMU, and stops that when it has been silent for a while.
pub fn without_xen(
    image: &Image,
    cpu: Cpu,
    memory: Option<u32>,
    cmdline: &str,
    limit: Duration,
    logs: &Path,
) -> Result<WithoutXen> {
    std::fs::create_dir_all(logs).with_context(|| format!("creating {}", logs.display()))?;
    let debug = logs.join("debug-port.log");
    let mut command = qemu::machine(cpu, memory.unwrap_or(64), 1);
    command.arg("-chardev").arg(format!("file,id=debug,path={}", debug.display()));
    command.args(["-device", "isa-debugcon,iobase=0xe9,chardev=debug"]);
    command.arg("-kernel").arg(&image.stripped).args(["-append", cmdline]);
    let mut machine = Machine::start(command, logs)?;
    let mut length = 0;
    let mut since = std::time::Instant::now();
    let waited = wait_for(&mut machine, limit, |serial| {
        if serial.len() != length {
            length = serial.len();
            since = std::time::Instant::now();
        }
        length > 0 && since.elapsed() > GRACE
    })?;
    let serial = machine.serial().since(0);
    drop(machine);
    let debug_port = std::fs::read_to_string(&debug).with_context(|| format!("reading {}", debug.display()))?;
    Ok(WithoutXen { serial, debug_port, ended: waited == Waited::Ended })
}
