//! Network stacks over the adaptors, on the simulated Xen: TCP and UDP between two domains that a third one bridges.

#![cfg(not(miri))]

use std::time::Duration;

use domu::net::{self, Config, Handle, Link, SmoltcpDevice};
use domu::sim::{Guest, Host, NetBackend, Store, make_vif};
use domu::xenstore::Path;
use domu::{Domain, executor, time};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Address};

const MS: Duration = Duration::from_millis(1);
const ONE: u16 = 7;
const OTHER: u16 = 8;
const BACK: u16 = 3;

fn guest(store: &Store) -> Guest {
    Guest::new().xenstore(store).memory_mib(16, 16).backed_mib(16)
}

async fn open(domain: Domain, config: Config) -> domu::Result<(net::Receiver, net::Transmitter, Handle)> {
    let path = Path::new("device/vif/0")?;
    let (interface, receiver, transmitter) = net::open(&domain.xenstore(), &path, config).await?;
    let handle = interface.handle();
    executor::spawn(async move {
        let _ = interface.run().await;
    })
    .detach();
    assert_eq!(handle.link_changed(Link::Down).await?, Link::Up);
    Ok((receiver, transmitter, handle))
}

/// The address of a domain, by the version of IP.
fn address(domain: u16, ipv6: bool) -> IpAddress {
    if ipv6 { Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, domain).into() } else { IpAddress::v4(10, 0, 0, domain as u8) }
}

/// A stack with one socket.
struct Stack {
    device: SmoltcpDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
}

fn now() -> Instant {
    Instant::from_micros((time::now().as_nanos() / 1000) as i64)
}

impl Stack {
    async fn new(domain: Domain, number: u16, config: Config) -> domu::Result<Self> {
        let (receiver, transmitter, handle) = open(domain, config).await?;
        let mut device = SmoltcpDevice::new(receiver, transmitter);
        let config = InterfaceConfig::new(EthernetAddress(handle.mac().0).into());
        let mut interface = Interface::new(config, &mut device, now());
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address(number, false), 24)).unwrap();
            addresses.push(IpCidr::new(address(number, true), 64)).unwrap();
        });
        Ok(Self { device, interface, sockets: SocketSet::new(Vec::new()) })
    }

    /// Has the stack work, and waits for something to do: a frame, or its own timers.
    async fn turn(&mut self) -> domu::Result {
        self.interface.poll(now(), &mut self.device, &mut self.sockets);
        let delay = self.interface.poll_delay(now(), &self.sockets).filter(|_| !self.device.is_blocked());
        let delay = delay.map_or(20 * MS, |delay| Duration::from_micros(delay.total_micros().max(1)));
        // Too late is a turn as well.
        let _ = time::timeout(delay.min(20 * MS), self.device.ready()).await;
        Ok(())
    }

    fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }
}

fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) ^ at >> 9) as u8
}

/// Sends bytes over TCP from one domain to another, and compares each.
fn transfer(backend: NetBackend, config: Config, ipv6: bool, total: usize) -> [net::Statistics; 2] {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    make_vif(&store, OTHER, BACK, 0);
    let counts = std::sync::Mutex::new([net::Statistics::default(); 2]);
    let reports = Host::new()
        .domain(BACK, guest(&store), async move |domain: Domain| backend.serve(domain, &[(ONE, 0), (OTHER, 0)]).await)
        .domain(ONE, guest(&store), async |domain: Domain| -> domu::Result {
            let mut stack = Stack::new(domain, ONE, config).await?;
            time::sleep(20 * MS).await;
            let handle = stack.tcp();
            let Stack { interface, sockets, .. } = &mut stack;
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            socket.connect(interface.context(), (address(OTHER, ipv6), 80), 5000).unwrap();
            let mut sent = 0;
            loop {
                let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(handle);
                while sent < total && socket.can_send() {
                    sent += socket
                        .send(|buffer| {
                            let len = buffer.len().min(total - sent);
                            buffer[..len].iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(sent + at));
                            (len, len)
                        })
                        .unwrap();
                }
                // All is acknowledged.
                if sent == total && socket.send_queue() == 0 {
                    break;
                }
                stack.turn().await?;
            }
            counts.lock().unwrap()[0] = stack.device.handle().statistics();
            Ok(())
        })
        .domain(OTHER, guest(&store), async |domain: Domain| -> domu::Result {
            let mut stack = Stack::new(domain, OTHER, config).await?;
            let handle = stack.tcp();
            stack.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(80).unwrap();
            let mut received = 0;
            loop {
                let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(handle);
                while socket.can_recv() {
                    received += socket
                        .recv(|bytes| {
                            bytes.iter().enumerate().for_each(|(at, byte)| assert_eq!(*byte, pattern(received + at)));
                            (bytes.len(), bytes.len())
                        })
                        .unwrap();
                }
                if received == total {
                    break;
                }
                stack.turn().await?;
            }
            counts.lock().unwrap()[1] = stack.device.handle().statistics();
            for _ in 0..50 {
                // The last acknowledgement may be lost.
                stack.turn().await?;
            }
            store.dom0(|dom0| {
                for front in [ONE, OTHER] {
                    dom0.remove(&format!("/local/domain/{front}/device/vif"));
                    dom0.remove(&format!("/local/domain/3/backend/vif/{front}"));
                }
            });
            Ok(())
        })
        .run();
    for report in reports {
        report.powered_off();
    }
    counts.into_inner().unwrap()
}

#[test]
fn tcp_between_two_domains_is_whole() {
    for ipv6 in [false, true] {
        let [sent, received] = transfer(NetBackend::default(), Config::new(), ipv6, 1 << 20);
        assert!(sent.tx_bytes > 1 << 20 && received.rx_blank > 700, "{sent:?} {received:?}");
        assert_eq!((sent.tx_dropped, received.rx_failed, received.rx_bad_checksum), (0, 0, 0));
    }
}

#[test]
fn tcp_survives_loss_and_a_weak_back_end() {
    let mut backend = NetBackend::default();
    (backend.scatter, backend.segmentation, backend.ipv6_checksum, backend.split) = (false, false, false, false);
    (backend.blank, backend.validated) = (false, false);
    (backend.loss, backend.late) = (50, 9);
    let [sent, received] = transfer(backend, Config::small(), true, 200_000);
    assert!(sent.tx_software_checksums > 130 && received.rx_verified > 130, "{sent:?} {received:?}");
    assert_eq!((sent.tx_dropped, received.rx_bad_checksum), (0, 0));
}
