//! Each target with the inputs in `corpus`, and with some that are made up.

use std::fs;
use std::path::{Path, PathBuf};

use domu_fuzz::{TARGETS, find, run};

/// Inputs that are made up.
const CASES: u64 = 1000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A generator of numbers (xorshift*).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn smoke(name: &str) {
    let target = find(name).expect("a target");
    let mut files = 0;
    for entry in fs::read_dir(corpus().join(name)).expect("a folder of the target's") {
        run(target, &fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files > 0, "no inputs for {name}");
    for case in 1..=CASES {
        let mut state = case.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let length = next(&mut state) % 400;
        let bytes: Vec<u8> = (0..length).map(|_| (next(&mut state) >> 56) as u8).collect();
        run(target, &bytes);
    }
}

#[test]
fn back_ring() {
    smoke("back_ring");
}

#[test]
fn block_front() {
    smoke("block_front");
}

#[test]
fn block_protocol() {
    smoke("block_protocol");
}

#[test]
fn boot() {
    smoke("boot");
}

#[test]
fn clock() {
    smoke("clock");
}

#[test]
fn console() {
    smoke("console");
}

#[test]
fn events() {
    smoke("events");
}

#[test]
fn front_ring() {
    smoke("front_ring");
}

#[test]
fn grants() {
    smoke("grants");
}

#[test]
fn hypercalls() {
    smoke("hypercalls");
}

#[test]
fn options() {
    smoke("options");
}

#[test]
fn xenstore_client() {
    smoke("xenstore_client");
}

#[test]
fn xenstore_wire() {
    smoke("xenstore_wire");
}

#[test]
fn each_target_has_a_test_and_a_corpus() {
    let tests = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/smoke.rs")).unwrap();
    let mut folders: Vec<String> =
        fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders, TARGETS.map(|target| target.0));
    for (name, _) in TARGETS {
        assert!(tests.contains(&format!("smoke(\"{name}\")")), "no test of {name}");
    }
}
