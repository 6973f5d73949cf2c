//! The target with floating point: its guest's cases, hello on it, and its specification against the toolchain's own.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::case::{Case, Stage, Where};
use super::table::says_hello;
use super::verdict::all_ok;
use cargo_xen::build::Flavour;
use cargo_xen::cargo;
use cargo_xen::cargo::TARGET;
use cargo_xen::lab::qemu::Cpu;
use cargo_xen::paths;
use cargo_xen::process::{self, output_of};

/// The specification of the target with floating point, in the workspace.
pub const FLOAT_TARGET: &str = "targets/x86_64-domu-none.json";

/// The rich machine's two processors; the poor one has the first.
const DOM0_CPU: u32 = 0;
const OTHER_CPU: u32 = 1;

/// What the guest must have said on every processor.
const CASES: [&str; 8] = [
    "float.control",
    "float.arithmetic",
    "float.conversion",
    "float.format",
    "float.sse2",
    "float.xmm_cpuid",
    "float.xmm_yield",
    "float.memory",
];

/// The tests of guests.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str, guest| {
        Case::new(name, guest, says_hello).flavour(Flavour::Float).on(Where { processors: true, ..Where::VERSIONS })
    };
    cases.push(case("hello::float", "hello"));
    cases.push(case("float::everything", "float").steps(everything));
}

/// The guest says `@ok` for all of its cases; which one that is for AVX follows from the processor, not from what the
/// guest finds there.
///
/// On the poor processor the guest shares the CPU with a busy dom0, so that one that yields really loses its registers to
/// another and gets them back. On the rich one it is kept apart: QEMU before 8.2 does not report a guest's XSETBV to
/// Xen, which then, when it comes back to the guest from another, restores an XCR0 without AVX.
fn everything(stage: &mut Stage) -> Result<()> {
    let (avx, cpu) = match stage.session.cpu() {
        Cpu::Poor => ("float.avx_absent", DOM0_CPU),
        Cpu::Rich => ("float.avx", OTHER_CPU),
    };
    stage.dom0(&format!("xl vcpu-pin Domain-0 all {DOM0_CPU}"))?;
    let busy = stage.dom0("(while :; do :; done) > /dev/null 2>&1 & echo $!")?;
    let outcome = stage.run_after(|stage| {
        let domain = stage.domain.clone();
        stage.dom0(&format!("xl vcpu-pin {domain} all {cpu}")).map(drop)
    });
    stage.dom0(&format!("kill {}; xl vcpu-pin Domain-0 all all", busy.trim()))?;
    all_ok(&outcome?, &[CASES.as_slice(), &[avx]].concat())?;
    stage.destroy()
}

/// What the specification has otherwise than the toolchain's own target, and why.
const MEANT: [(&str, &str); 8] = [
    ("features", "SSE and SSE2 instead of floating point in software"),
    ("rustc-abi", "the ABI of the processor's own floating point is the one without a name"),
    ("metadata", "a description"),
    ("position-independent-executables", "boot relocates nothing"),
    ("static-position-independent-executables", "boot relocates nothing"),
    ("relocation-model", "as the README's flags have it: boot relocates nothing"),
    ("frame-pointer", "as the README's flags have it: backtraces follow them"),
    ("pre-link-args", "as the README's flags have it: the linker script"),
];

/// The specification is the toolchain's own but for what is meant: one made for another version of LLVM could be
/// refused, or understood otherwise.
pub fn specification() -> Result<()> {
    let mut command = process::command("rustc");
    cargo::clean_environment(&mut command);
    command.current_dir(paths::workspace()).env("RUSTC_BOOTSTRAP", "1");
    command.args(["-Zunstable-options", "--print", "target-spec-json", "--target", TARGET]);
    let theirs = serde_json::from_slice(&output_of(&mut command)?).context("what rustc prints")?;
    let path = paths::workspace().join(FLOAT_TARGET);
    let ours = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let ours = serde_json::from_slice(&ours).with_context(|| format!("reading {}", path.display()))?;
    match differences(&ours, &theirs).as_slice() {
        [] => Ok(()),
        found => {
            bail!("{FLOAT_TARGET} and {TARGET} of this toolchain differ where it is not meant:\n{}", found.join("\n"))
        }
    }
}

/// The keys that differ without a reason, and those that have a reason and do not differ.
fn differences(ours: &Map<String, Value>, theirs: &Map<String, Value>) -> Vec<String> {
    let mut keys: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    keys.sort();
    keys.dedup();
    let meant = |key: &str| MEANT.iter().any(|(meant, _)| *meant == key);
    let shown = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
    let mut found: Vec<String> = keys
        .into_iter()
        .filter(|key| ours.get(*key) != theirs.get(*key) && !meant(key))
        .map(|key| format!("  {key}: {} instead of {}", shown(ours.get(key)), shown(theirs.get(key))))
        .collect();
    let stale = MEANT.iter().filter(|(key, _)| ours.get(*key) == theirs.get(*key));
    found.extend(stale.map(|(key, why)| format!("  {key} does not differ any more ({why})")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(changed: &[(&str, &str)]) -> Map<String, Value> {
        let all = MEANT.iter().map(|(key, _)| (*key, "ours")).chain(changed.iter().copied());
        all.map(|(key, value)| (key.to_owned(), value.into())).collect()
    }

    #[test]
    fn only_what_is_meant_may_differ() {
        let theirs = map(&[("data-layout", "a"), ("arch", "b")]);
        let ours = |changed: &[(&str, &str)]| {
            let mut ours = map(changed);
            for (key, _) in MEANT {
                ours.remove(key);
            }
            ours
        };
        assert!(differences(&ours(&[("data-layout", "a"), ("arch", "b")]), &theirs).is_empty());
        assert_eq!(differences(&ours(&[("data-layout", "c"), ("arch", "b")]), &theirs).len(), 1);
        assert_eq!(differences(&ours(&[("arch", "b")]), &theirs).len(), 1);
    }

    #[test]
    fn a_reason_without_a_difference_is_noticed() {
        let same = map(&[]);
        assert_eq!(differences(&same, &same).len(), MEANT.len());
    }
}
