//! Tests of the harness by itself: each kind of result, on the simulated Xen.
#![cfg_attr(target_os = "none", no_std, no_main)]

use domu_test::Domain;

domu_test::harness!();

#[domu_test::test]
async fn domain_has_a_command_line(domain: Domain) {
    assert!(domain.words().count() >= 2);
}

mod inner {
    use super::Domain;

    #[domu_test::test]
    async fn result_is_taken(domain: Domain) -> domu::Result {
        domain.console().write_all(b"a line without an end").await?;
        Ok(())
    }
}

#[domu_test::test]
#[should_panic(expected = "a \"quoted\"\ttext")]
async fn panic_is_expected(_: Domain) {
    panic!("some words around a \"quoted\"\ttext");
}

#[domu_test::test]
#[ignore = "never run"]
#[timeout(5)]
async fn ignored_test_is_not_run(_: Domain) {
    panic!("it was run");
}
