//! Our front end against our back end.

use domu::eventchn::{self, Port};
use domu::executor::spawn;
use domu::gnttab::{self, Granted, Mapping, ReadWrite, Reference};
use domu::sim::Host;
use domu::time;
use domu::xenbus::Backend;

use super::*;

fn back_end(id: usize) -> Path {
    Path::new(format!("backend/vif/7/{id}")).unwrap()
}

/// What `serve` says of a life.
async fn first_of(one: impl Future, other: impl Future) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|context| {
        let ready = one.as_mut().poll(context).is_ready() | other.as_mut().poll(context).is_ready();
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Uses a device for so many connections, closing it after each `closes` of them, and then has the toolstack remove it.
async fn use_device(domain: Domain, id: usize, lives: u32, closes: u32) -> domu::Result {
    let mut front = Frontend::open(&domain.xenstore(), &Path::new(format!("device/vif/{id}"))?).await?;
    for life in 0..lives {
        loop {
            front.prepare().await?;
            assert_eq!(front.feature("feature-sg", 0u32, 1).await?, 1);
            let peer = front.device().peer();
            let ring = Granted::<ReadWrite>::new(peer, 1).await?;
            ring.memory().write_value(0, &life);
            let port = eventchn::alloc_unbound(peer)?;
            let reference = ring.references().next().unwrap();
            let details: &xenbus::Details<'_> = &[("ring-ref", &reference), ("event-channel", &port.number())];
            let connected =
                front.connect(if life % 2 == 0 { State::INITIALISED } else { State::CONNECTED }, details).await;
            match &connected {
                Ok(()) => {
                    first_of(port.after(0), front.until_closing()).await;
                    if life % closes != 0 {
                        front.until_closing().await?;
                    }
                }
                Err(error) if *error == ErrorKind::Closed => {}
                Err(error) => return Err(error.clone().into()),
            }
            front.close().await?;
            let connected = connected.is_ok().then(|| ring.memory().read_value::<u32>(4));
            ring.end()?;
            match connected {
                Some(written) => break assert_eq!(written, life + 1),
                None => continue,
            }
        }
    }
    Ok(())
}

/// Serves a device until it is gone, and closes after each connection but those after which the front end does.
async fn serve_device(domain: Domain, id: usize, closes: u32) -> domu::Result {
    let mut back = Backend::open(&domain.xenstore(), &back_end(id)).await?;
    loop {
        back.prepare(&[("feature-sg", &1)]).await?;
        let served = async {
            back.accept().await?;
            let peer = back.device().peer();
            let reference = Reference(back.read("ring-ref").await?.number()?);
            let ring = Mapping::<ReadWrite>::new(peer, &[reference]).await?;
            let port: Port = eventchn::bind_interdomain(peer, back.read("event-channel").await?.number()?)?;
            let life = ring.memory().read_value::<u32>(0);
            ring.memory().write_value(4, &(life + 1));
            back.connect(&[]).await?;
            port.notify()?;
            if life % closes == 0 {
                back.until_closing().await?;
            }
            Ok::<_, domu::Error>(())
        };
        match served.await {
            Ok(()) => back.close().await?,
            Err(domu::Error::Device(error)) if error == ErrorKind::Closed => back.close().await?,
            Err(error) => return Err(error),
        }
    }
}

/// Runs both ends of some devices.
fn both_ends(host: Host<'_>, server: &Store, devices: usize, lives: u32, closes: u32) {
    (0..devices).for_each(|id| make(server, id));
    let reports = host
        .domain(FRONT, Guest::new().xenstore(server), async move |domain: Domain| -> domu::Result {
            let tasks: Vec<_> = (0..devices).map(|id| spawn(use_device(domain, id, lives, closes))).collect();
            for task in tasks {
                task.await?;
            }
            check_nothing_left(server, domain).await;
            // The toolstack asks first, as libxl does, and the back ends close; ours are closed already.
            server.dom0(|dom0| {
                for id in 0..devices {
                    dom0.write(&format!("/local/domain/3/backend/vif/7/{id}/online"), "0");
                    dom0.write(&format!("/local/domain/3/backend/vif/7/{id}/state"), "5");
                }
            });
            time::sleep(Duration::from_secs(1)).await;
            server.dom0(|dom0| {
                for id in 0..devices {
                    let state = dom0.read(&format!("/local/domain/3/backend/vif/7/{id}/state"));
                    assert_eq!(state.as_deref(), Some(&b"6"[..]));
                }
                dom0.remove("/local/domain/7/device/vif");
                dom0.remove("/local/domain/3/backend/vif");
            });
            assert_eq!(gnttab::stat().deferred, 0);
            assert!(eventchn::alloc_unbound(domu::DomainId(BACK))?.number() < 8, "ports are left");
            Ok(())
        })
        .domain(BACK, Guest::new().xenstore(server), async move |domain: Domain| -> domu::Result {
            let tasks: Vec<_> = (0..devices).map(|id| spawn(serve_device(domain, id, closes))).collect();
            for task in tasks {
                assert!(matches!(task.await, Err(domu::Error::Device(error)) if error == ErrorKind::Gone));
            }
            check_nothing_left(server, domain).await;
            assert!(eventchn::alloc_unbound(domu::DomainId(FRONT))?.number() < 8, "ports are left");
            Ok(())
        })
        .run();
    reports.iter().for_each(check);
}

#[test]
fn both_ends_connect_and_part_and_connect_again() {
    for server in [Store::new(), Store::oxenstored()] {
        both_ends(Host::new(), &server, 1, 6, 2);
        both_ends(Host::new(), &server, 3, 4, 3);
    }
}

#[test]
fn no_schedule_keeps_two_ends_from_each_other() {
    for seed in 0..30 {
        both_ends(Host::new().seed(seed), &Store::new(), 1, 4, 2 + seed as u32 % 2);
    }
}

#[test]
fn a_thousand_connections_of_forty_devices_leave_nothing() {
    both_ends(Host::new(), &Store::new(), 40, 25, 2);
}
