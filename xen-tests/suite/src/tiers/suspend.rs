//! Save, restore and migrate: what `xl` does to a domain that works, and what the domain says of it.

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where};
use super::verdict::all_ok;

const GUEST: &str = "suspend";
const DISK: &str = "/dev/loop1";
const VERDICTS: [&str; 3] = ["suspend.load", "suspend.usage", "suspend.idle"];

/// The clock of the domain is that of dom0, within a second, and the tenth of one that its word is old. Both are read one after the
/// other: `xl` takes its time.
const CLOCK: &str = "home=/local/domain/$(xl domid $name) && sleep 0.3 && wall=$(xenstore-read $home/data/wall) && now=$(date +%s) && \
    echo \"it is $now, and $wall there\" && [ $((now - wall)) -ge -1 ] && [ $((now - wall)) -le 1 ]";

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str, cmdline: &str, steps: fn(&mut Stage) -> Result<()>| {
        let case = Case::new(format!("suspend::{name}"), GUEST, |_| Ok(())).cmdline(cmdline).seconds(400);
        case.line(&format!("disk = ['phy:{DISK},xvda,w']")).steps(move |stage| {
            stage.dom0(&format!(
                "dd if=/dev/zero of=/run/saved-disk bs=1M count=1 2> /dev/null && losetup {DISK} /run/saved-disk"
            ))?;
            let result = steps(stage);
            if result.is_err() {
                // It has it still, unless it is gone.
                let _ = stage.destroy();
            }
            let cleared = stage.dom0(&format!("losetup -d {DISK}; rm /run/saved-disk"));
            result.and(cleared.map(drop))
        })
    };
    cases.push(case("save", "resumes=2", |stage| save(stage, 2)));
    cases.push(case("save_ten", "resumes=10", |stage| save(stage, 10)).on(Where::NOWHERE));
    cases.push(case("checkpoint", "cancels=2", checkpoint));
    cases.push(case("fails", "cancels=1", fails));
    cases.push(case("migrate", "resumes=2", migrate));
}

/// A function of the shell's that runs a command of `xl`'s, which says what it did if it fails, or takes longer than any should.
const XL: &str = "traced() { timeout 70 xl -vvv \"$@\" > /run/said 2>&1 || { tail -n 30 /run/said; false; }; }";

/// Starts the domain, has dom0 do something `times`, in which `$name` is the domain, and follows it to its end: it says after each
/// how it went, and each of its numbers is there once, and in order.
fn repeat(stage: &mut Stage, times: u32, command: &str, said: &str) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.until_said(&name, "'@n 10'")?;
        for i in 1..=times {
            let mut once = || {
                stage.dom0(&format!("{XL}; name={name}; {command}"))?;
                stage.until_said(&name, &format!("'@{said} {i} '"))?;
                stage.dom0(&format!("name={name}; {CLOCK}"))
            };
            once().with_context(|| format!("the {i}th time"))?;
        }
        Ok(())
    })?;
    stage.destroy()?;
    let text = outcome.text();
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.trim().strip_prefix("@n ")?.parse().ok()).collect();
    let wrong = (0..).zip(&numbers).find(|(index, number)| index != *number);
    ensure!(wrong.is_none(), "the numbers are not one after the other: {wrong:?}");
    ensure!(numbers.len() > 10 * times as usize, "there are {} numbers only", numbers.len());
    all_ok(&outcome, &VERDICTS)
}

fn save(stage: &mut Stage, times: u32) -> Result<()> {
    let command = "traced save $name /run/saved && ! xl domid $name && traced restore /run/saved && rm /run/saved";
    repeat(stage, times, command, "resumed")
}

/// A copy is written, and the domain goes on. It is asked by an event.
fn checkpoint(stage: &mut Stage) -> Result<()> {
    let command = "traced save -c $name /run/saved && grep 'suspend request via event channel' /run/said && \
                   [ -s /run/saved ] && rm /run/saved";
    repeat(stage, 2, command, "cancelled")
}

/// There is no room for what is to be saved: the toolstack sees that after the domain was suspended, and lets it go on.
fn fails(stage: &mut Stage) -> Result<()> {
    let command = "mkdir -p /run/small && mount -t tmpfs -o size=4m small /run/small && \
                   ! xl save $name /run/small/saved && umount /run/small";
    repeat(stage, 1, command, "cancelled")
}

/// To the same host, without a network. What the new domain says goes to a log by the name that it has at first. The domain is
/// asked by the word, as by a toolstack that knows of no channel.
fn migrate(stage: &mut Stage) -> Result<()> {
    let command = "ln -sf guest-$name.log /var/log/xen/console/guest-$name--incoming.log && \
                   xenstore-rm /local/domain/$(xl domid $name)/device/suspend && \
                   traced migrate -s '' $name 'xl migrate-receive' && grep 'via XenBus control node' /run/said";
    repeat(stage, 2, command, "resumed")
}
