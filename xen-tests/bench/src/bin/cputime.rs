//! Prints what Xen has accounted to a domain in processor time, in nanoseconds.
//!
//! `xl list` shows tenths of a second; `cargo xen bench` needs all digits. This runs in dom0 and asks
//! the hypervisor itself (XEN_DOMCTL_getdomaininfo through /dev/xen/privcmd), with each version of
//! that interface in turn, since Xen takes only its own.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

/// The number of the hypercall.
const DOMCTL: u64 = 36;
/// The operation.
const GETDOMAININFO: u32 = 5;
/// ioctl number of a hypercall: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL: libc::c_ulong = ((b'P' as libc::c_ulong) << 8) | ((size_of::<Hypercall>() as libc::c_ulong) << 16);
/// Interface versions of Xen 4.10 and later.
const VERSIONS: std::ops::RangeInclusive<u32> = 0xe..=0x20;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    number: u64,
    arguments: [u64; 5],
}

/// `struct xen_domctl` with a `struct xen_domctl_getdomaininfo` as far as it is read here.
#[repr(C, align(4096))]
struct Domctl {
    command: u32,
    version: u32,
    domain: u16,
    padding: [u16; 3],
    answered_domain: u16,
    padding2: u16,
    flags: u32,
    /// Pages in all, at most, outstanding, shared, paged, and the frame of shared_info.
    pages: [u64; 6],
    cpu_time: u64,
    rest: [u64; 256],
}

fn main() -> ExitCode {
    let Some(domain) = std::env::args().nth(1).and_then(|text| text.parse().ok()) else {
        eprintln!("usage: cputime DOMAIN-NUMBER");
        return ExitCode::from(2);
    };
    match cpu_time(domain) {
        Ok(nanoseconds) => {
            println!("{nanoseconds}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("asking Xen about domain {domain}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cpu_time(domain: u16) -> std::io::Result<u64> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/xen/privcmd")?;
    for version in VERSIONS {
        let mut domctl = Box::new(Domctl {
            command: GETDOMAININFO,
            version,
            domain,
            padding: [0; 3],
            answered_domain: 0,
            padding2: 0,
            flags: 0,
            pages: [0; 6],
            cpu_time: 0,
            rest: [0; 256],
        });
        let address = (&raw mut *domctl).cast::<libc::c_void>();
        // SAFETY: the range is the box's, which outlives the calls below. Xen writes to it through its
        // address, and pages that could be swapped out would make that fail.
        if unsafe { libc::mlock(address, size_of::<Domctl>()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut call = Hypercall { number: DOMCTL, arguments: [address as u64, 0, 0, 0, 0] };
        // SAFETY: the kernel reads `call`; Xen writes an answer no longer than `Domctl` to the box,
        // which nobody else looks at meanwhile.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL, &raw mut call) };
        if result == 0 {
            // SAFETY: the box is alive and initialised; the read is volatile because the compiler
            // cannot know that the call above changed it.
            let (answered, time) = unsafe {
                let domctl: *const Domctl = address.cast();
                (
                    (&raw const (*domctl).answered_domain).read_volatile(),
                    (&raw const (*domctl).cpu_time).read_volatile(),
                )
            };
            if answered == domain {
                return Ok(time);
            }
            return Err(std::io::Error::other(format!("it answers about domain {answered}")));
        }
        let error = std::io::Error::last_os_error();
        // EACCES: another version of the interface.
        if error.raw_os_error() != Some(libc::EACCES) {
            return Err(error);
        }
    }
    Err(std::io::Error::other("no known version of the interface fits"))
}
