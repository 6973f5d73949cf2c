//! Tests in domains of their own: on Xen by `cargo xen test`, on the simulated Xen by `cargo xen test --host`.

#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::string::ToString;

use domu_test::Domain;

domu_test::harness!();

#[domu_test::test]
async fn greeting_names_the_domain(domain: Domain) {
    let id = domain.id().0;
    assert!({crate}::greeting(id).to_string().ends_with(&id.to_string()));
}

#[domu_test::test]
async fn console_takes_a_line(domain: Domain) -> domu::Result {
    domain.console().write_all(b"a line\r\n").await?;
    domain.console().flush().await?;
    Ok(())
}

#[domu_test::test]
#[should_panic(expected = "index out of bounds")]
async fn index_is_checked(domain: Domain) {
    let bytes = [0_u8; 4];
    let index = domain.command_line().len();
    assert_eq!(bytes[index], 0);
}
