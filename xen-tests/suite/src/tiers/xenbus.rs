//! Devices on real Xen: front ends of what Linux serves in dom0, and both ends in two domains.

use anyhow::{Result, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::{all_ok, verdicts};
use cargo_xen::lab::domain::Reason;

/// What a guest with a device that Linux serves must have said.
const CASES: [&str; 7] = [
    "frontend.found",
    "frontend.again",
    "frontend.detached",
    "frontend.attached",
    "frontend.rebound",
    "frontend.removed",
    "frontend.nothing_left",
];

/// What the guest of the crate's front end of disks must have said.
const BLOCK: [&str; 7] = [
    "block.connected",
    "block.verified",
    "block.durable",
    "block.resized",
    "block.rebound",
    "block.detached",
    "block.nothing_left",
];

/// A device that Linux serves in dom0.
struct Served {
    class: &'static str,
    id: &'static str,
    /// What `xl` calls it, in the names of its commands, and for the domain.
    kind: &'static str,
    name: &'static str,
    config: &'static str,
    /// How libxl starts its hotplug script.
    script: &'static str,
}

const DISK: Served = Served {
    class: "vbd",
    id: "51712",
    kind: "block",
    name: "xvda",
    config: "phy:/dev/loop0,xvda,w",
    script: "block add",
};

const NETWORK: Served = Served {
    class: "vif",
    id: "0",
    kind: "network",
    name: "0",
    config: "mac=00:16:3e:00:00:01",
    script: "vif-bridge online",
};

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str, guest, cmdline: String| {
        Case::new(format!("xenbus::{name}"), guest, |_| Ok(())).cmdline(cmdline).seconds(200)
    };
    cases.push(case("disk", "frontend", "vbd times=20".into()).on(Where::VERSIONS).steps(disk));
    // The busybox of the oldest dom0 cannot tell a loop device of its file's new size.
    cases.push(case("block", "disks", "fixed".into()).on(Where::VERSIONS).steps(|stage| block(stage, false)));
    cases.push(case("block_resized", "disks", String::new()).steps(|stage| block(stage, true)));
    let network = case("network", "frontend", "vif times=20".into()).steps(|stage| served(stage, &NETWORK));
    cases.push(network.on(Where::VERSIONS));
    for (name, words) in [("net", ""), ("net_small", "small")] {
        let place = if words.is_empty() { Where::VERSIONS } else { Where::MAIN };
        cases.push(case(name, "net", words.into()).on(place).steps(pinged));
    }
    for (name, victim, place) in [("two_domains", "front", Where::MAIN), ("back_end_dies", "back", Where::NOWHERE)] {
        let case = case(name, "device", format!("times=20 victim={victim}"));
        cases.push(case.on(place).steps(move |stage| two_domains(stage, victim)));
    }
    cases.push(Case::new("xenbus::ping", "ping", |_| Ok(())).steps(ping));
}

/// A disk, of a mebibyte in a file.
fn disk(stage: &mut Stage) -> Result<()> {
    stage.dom0("dd if=/dev/zero of=/run/disk bs=1M count=1 2> /dev/null && losetup /dev/loop0 /run/disk")?;
    let result = served(stage, &DISK);
    let cleared = stage.dom0("losetup -d /dev/loop0; rm /run/disk");
    result.and(cleared.map(drop))
}

/// The crate's front end of a disk of 32 MiB, which may grow.
fn block(stage: &mut Stage, grows: bool) -> Result<()> {
    stage.dom0("dd if=/dev/zero of=/run/disk bs=1M count=32 2> /dev/null && losetup /dev/loop0 /run/disk")?;
    let result = block_steps(stage, grows);
    let cleared = stage.dom0("losetup -d /dev/loop0; rm /run/disk");
    result.and(cleared.map(drop))
}

fn block_steps(stage: &mut Stage, grows: bool) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let domain = stage.domain.clone();
        let number: u32 = stage.dom0(&format!("xl domid {domain}"))?.trim().parse()?;
        let (name, back) = (format!("vbd-{number}-51712"), format!("/local/domain/0/backend/vbd/{number}/51712"));
        stage.dom0(&format!("xl block-attach {domain} {}", DISK.config))?;
        for (word, command) in [
            ("grow", "truncate -s 64M /run/disk && losetup -c /dev/loop0".to_owned()),
            (
                "rebind",
                format!(
                    "cd /sys/bus/xen-backend/drivers/vbd && echo {name} > unbind && echo {name} > bind && \
                     XENBUS_PATH={back} /etc/xen/scripts/block add"
                ),
            ),
            ("detach", format!("xl block-detach {domain} xvda")),
        ] {
            if word == "grow" && !grows {
                continue;
            }
            stage.until_said(&domain, &format!("@{word}"))?;
            stage.dom0(&command)?;
        }
        Ok(())
    })?;
    stage.destroy()?;
    let expected: Vec<&str> = BLOCK.into_iter().filter(|step| grows || *step != "block.resized").collect();
    all_ok(&outcome, &expected)
}

/// Does with a device what the guest says.
fn served(stage: &mut Stage, device: &Served) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let Served { class, id, kind, name, config, script } = device;
        let domain = stage.domain.clone();
        let number: u32 = stage.dom0(&format!("xl domid {domain}"))?.trim().parse()?;
        let back = format!("/local/domain/0/backend/{class}/{number}/{id}");
        let attach = format!("xl {kind}-attach {domain} {config}");
        stage.dom0(&attach)?;
        for (word, command) in [
            ("detach", format!("xl {kind}-detach {domain} {name}")),
            ("attach", attach),
            // The hotplug script does for the driver what it does when the device is new.
            (
                "rebind",
                format!(
                    "cd /sys/bus/xen-backend/drivers/{class} && echo {class}-{number}-{id} > unbind && \
                     echo {class}-{number}-{id} > bind && \
                     XENBUS_PATH={back} vif=vif{number}.{id} /etc/xen/scripts/{script}"
                ),
            ),
            ("remove", format!("xenstore-rm /local/domain/{number}/device/{class}/{id} && xenstore-rm {back}")),
        ] {
            stage.until_said(&domain, &format!("@{word}"))?;
            stage.dom0(&command)?;
        }
        Ok(())
    })?;
    stage.destroy()?;
    all_ok(&outcome, &CASES)
}

/// Dom0 sends pings to a guest that answers frame by frame, in one piece and in fragments.
fn pinged(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let domain = stage.domain.clone();
        let number: u32 = stage.dom0(&format!("xl domid {domain}"))?.trim().parse()?;
        stage.until_said(&domain, "@attach")?;
        stage.dom0(&format!("xl network-attach {domain} {}", NETWORK.config))?;
        stage.until_said(&domain, "@ping")?;
        stage.dom0(&format!("ip addr add 10.7.0.1/24 dev vif{number}.0"))?;
        for (size, count) in [(56, 100), (1472, 50), (9000, 20), (60_000, 10)] {
            let said = stage.dom0(&format!("ping -c {count} -i 0.05 -s {size} 10.7.0.2 | tail -n 3"))?;
            ensure!(said.contains(" 0% packet loss"), "pings of {size} bytes: {said}");
        }
        stage.dom0(&format!("xenstore-write /local/domain/{number}/data/pinged 1"))?;
        stage.until_said(&domain, "@detach")?;
        stage.dom0(&format!("xl network-detach {domain} 0"))?;
        Ok(())
    })?;
    all_ok(&outcome, &["net.opened", "net.answered", "net.detached", "net.nothing_left"])
}

/// Dom0 makes the device and has it removed, and destroys one of the domains at last.
fn two_domains(stage: &mut Stage, victim: &str) -> Result<()> {
    const CLASS: &str = "test";
    let [front, back] = stage.run_ends(CLASS, |stage, [front, back]| {
        let device = format!("{CLASS} {} {}", front.number, back.number);
        stage.until_said(&front.name, "@remake")?;
        stage.dom0(&format!("remove_device {device} && make_device {device}"))?;
        stage.until_said(&front.name, "@destroy")?;
        let victim = if victim == "front" { front } else { back };
        stage.dom0(&format!("xl destroy {}", victim.name))?;
        Ok(())
    })?;
    let (passed, failed) = verdicts(&front.text());
    ensure!(failed.is_empty(), "the front end says: {}", failed.join("; "));
    for case in ["device.connects", "device.told_to_close", "device.made_anew"] {
        ensure!(passed.iter().any(|passed| passed == case), "the front end does not say @ok {case}");
    }
    let (dead, other) = if victim == "front" { (front, back) } else { (back, front) };
    ensure!(dead.reason.is_none(), "the {victim} end is still there: it ended with {:?}", dead.reason);
    all_ok(&other, &["device.peer_died"])
}

/// The example: each of five messages is answered.
fn ping(stage: &mut Stage) -> Result<()> {
    let both = stage.run_ends("ping", |_, _| Ok(()))?;
    for (outcome, word) in both.iter().zip(["answers: pong", "says: ping"]) {
        for count in 1..=5 {
            ensure!(outcome.text().contains(&format!("{word} {count}")), "it does not say {word} {count}");
        }
        ended(outcome, Reason::Poweroff)?;
    }
    Ok(())
}
