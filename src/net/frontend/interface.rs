//! The task of an interface: handshake, reconnects and the end.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use alloc::sync::Arc;

use super::config::Config;
use super::connection::{Connection, Offer};
use super::memory::{Rx, Store, Tx};
use super::receive::Receiver;
use super::shared::{Handle, Interruption, Shared};
use super::transmit::Transmitter;
use crate::net::Error;
use crate::net::protocol::MacAddress;
use crate::xenbus::{self, Details, ErrorKind, Frontend, State};
use crate::xenstore::{self, Path, Value, Xenstore};
use crate::{eventchn, time};

/// How long a back end may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// The pauses before another attempt to connect: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The time after which a back end that does not connect is told of.
const PATIENCE: Duration = Duration::from_secs(10);

/// The task of a network interface. [`run`](Self::run) connects, and connects again, as long as the toolstack keeps the
/// interface. Dropping it ends the interface.
#[derive(Debug)]
#[must_use = "an interface connects while its task runs"]
pub struct Interface {
    xenstore: Xenstore,
    path: Path,
    front: Frontend,
    config: Config,
    store: Store,
    shared: Arc<Shared>,
}

/// Opens a network interface by its directory in xenstore, such as `device/vif/0`, and takes all its memory.
///
/// The interface connects when its task runs:
///
/// ```no_run
/// # async fn example(domain: domu::Domain) -> domu::Result {
/// use domu::net::{self, Config, Metadata};
/// # use domu::executor::spawn;
/// # use domu::xenstore::Path;
///
/// let path = Path::new("device/vif/0")?;
/// let (interface, mut receiver, mut transmitter) = net::open(&domain.xenstore(), &path, Config::new()).await?;
/// spawn(interface.run()).detach();
/// loop {
///     // Sends each frame back to where it came from.
///     let frame = receiver.receive().await?;
///     let bytes = frame.bytes();
///     transmitter
///         .send(bytes.len().min(1514), Metadata::default(), |reply| {
///             reply.copy_from_slice(&bytes[..reply.len()]);
///             reply[..6].copy_from_slice(&bytes[6..12]);
///             reply[6..12].copy_from_slice(&bytes[..6]);
///         })
///         .await?;
/// }
/// # }
/// ```
///
/// # Errors
///
/// [`Error::InvalidConfig`], [`Error::Memory`], [`Error::InvalidMac`]; those of [`Frontend::open`].
///
/// # Cancel safety
///
/// Nothing is left behind.
pub async fn open(store: &Xenstore, path: &Path, config: Config) -> Result<(Interface, Receiver, Transmitter), Error> {
    config.check()?;
    let memory = Store::new(&config)?;
    let front = Frontend::open(store, path).await?;
    let read = async |name: &str| match store.read(path.join(name)?).await {
        Err(error) if error == xenstore::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    let text = |value: &Value| value.as_str().ok().and_then(|text| text.parse().ok());
    let mac: MacAddress = read("mac").await?.as_ref().and_then(text).ok_or(Error::InvalidMac)?;
    let mtu = read("mtu").await?.and_then(|value| value.number().ok());
    let shared = Shared::new(mac, mtu);
    let receiver = Receiver::new(Arc::clone(&shared), config.verify_checksums);
    let transmitter = Transmitter::new(Arc::clone(&shared), config.reserve());
    let (xenstore, path) = (store.clone(), path.clone());
    Ok((Interface { xenstore, path, front, config, store: memory, shared }, receiver, transmitter))
}

impl Interface {
    /// A view of the interface.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Connects the interface, and connects it again when its back end closes, until the toolstack removes it.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if the back end breaks the protocol; [`Error::NoCopy`]; those of xenstore. The halves say so too.
    ///
    /// # Cancel safety
    ///
    /// The interface has ended when the future is dropped; the back end finds the front end gone.
    pub async fn run(mut self) -> Result<(), Error> {
        let ended = self.serve().await;
        let end = ended.clone().err().unwrap_or(Error::Closed);
        self.shared.end(end);
        ended
    }

    async fn serve(&mut self) -> Result<(), Error> {
        let [mut pause, longest] = PAUSES;
        loop {
            let result = self.connect().await;
            let connected = result.is_ok();
            let ended = match result {
                Ok(()) => {
                    pause = PAUSES[0];
                    let shared = Arc::clone(&self.shared);
                    first(self.front.until_closing(), shared.interrupted()).await
                }
                Err(error) => Err(error),
            };
            self.shared.end_connection();
            if !is_device(&ended, &ErrorKind::Gone)
                && !matches!(ended, Err(Error::PagesWithPeer) | Ok(Some(Interruption::Resumed)))
            {
                // A back end that does not close in time keeps what it uses.
                let _ = time::timeout(CLOSE, self.front.close()).await;
            }
            let (rx, tx) = self.shared.collect(connected).await;
            self.store.give_back(rx, tx);
            if is_device(&ended, &ErrorKind::Gone) {
                // After a resume, and on a change of the back end's domain, there is another in its place.
                match Frontend::open(&self.xenstore, &self.path).await {
                    Ok(front) => self.front = front,
                    Err(error) if *error.kind() == ErrorKind::Gone => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            let again = is_device(&ended, &ErrorKind::Gone) || is_device(&ended, &ErrorKind::Closed);
            match ended {
                Ok(Some(Interruption::Violation(violation))) => return Err(Error::Violation(violation)),
                Ok(None | Some(Interruption::Resumed)) | Err(Error::PagesWithPeer) => {}
                Err(_) if again => {}
                Err(error) => return Err(error),
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Connects once.
    async fn connect(&mut self) -> Result<(), Error> {
        self.front.prepare().await?;
        let peer = self.front.device().peer();
        let flag = async |front: &Frontend, name: &str| Ok::<_, Error>(front.feature(name, 0_u32, 1).await? == 1);
        if !flag(&self.front, "feature-rx-copy").await? {
            return Err(Error::NoCopy);
        }
        let offer = Offer {
            scatter: flag(&self.front, "feature-sg").await?,
            segmentation: [
                flag(&self.front, "feature-gso-tcpv4").await?,
                flag(&self.front, "feature-gso-tcpv6").await?,
            ],
            ipv6_checksum: flag(&self.front, "feature-ipv6-csum-offload").await?,
        };
        let split = flag(&self.front, "feature-split-event-channels").await?;
        let (rx, tx) = self.store.take(&self.config, peer)?;
        let result = self.publish(&rx, &tx, split, offer).await;
        match result {
            Ok(connection) => {
                self.shared.begin(connection, rx, tx);
                Ok(())
            }
            Err(error) => {
                self.store.give_back(Some(rx), Some(tx));
                Err(error)
            }
        }
    }

    /// Tells the back end where the rings are, and waits until it has connected.
    async fn publish(&mut self, rx: &Rx, tx: &Tx, split: bool, offer: Offer) -> Result<Connection, Error> {
        let peer = self.front.device().peer();
        let receive = eventchn::alloc_unbound(peer)?;
        let transmit = if split { Some(eventchn::alloc_unbound(peer)?) } else { None };
        let reference = |references: &mut dyn Iterator<Item = _>| references.next().ok_or(Error::Closed);
        let receive_ring = reference(&mut rx.ring.memory().references())?;
        let transmit_ring = reference(&mut tx.ring.memory().references())?;
        let (one, large) = (receive.number(), u32::from(self.config.large_receive));
        let other = transmit.as_ref().map_or(one, eventchn::Port::number);
        let names: &[&str] = if split { &["event-channel-rx", "event-channel-tx"] } else { &["event-channel"] };
        let numbers = [one, other];
        let mut details: heapless::Vec<(&str, &dyn core::fmt::Display), 16> = heapless::Vec::new();
        let ports = names.iter().zip(&numbers).map(|(name, number)| (*name, number as &dyn core::fmt::Display));
        details.extend(ports);
        details.extend::<[(&str, &dyn core::fmt::Display); 8]>([
            ("tx-ring-ref", &transmit_ring),
            ("rx-ring-ref", &receive_ring),
            ("request-rx-copy", &1),
            ("feature-rx-notify", &1),
            ("feature-sg", &1),
            ("feature-gso-tcpv4", &large),
            ("feature-gso-tcpv6", &large),
            ("feature-ipv6-csum-offload", &1),
        ]);
        let details: &Details<'_> = &details;
        let mut connect = pin!(self.front.connect(State::CONNECTED, details));
        match time::timeout(PATIENCE, connect.as_mut()).await {
            Ok(result) => result?,
            Err(_) => {
                log::warn!("network: the back end does not connect; has its hotplug script failed (hotplug-status)?");
                connect.await?;
            }
        }
        let connection = Connection::new(receive, transmit, offer);
        // What was published before it looked at the rings may have no event.
        connection.notify_all();
        Ok(connection)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.shared.end(Error::Closed);
    }
}

/// Whether it is an error of the device of this kind.
fn is_device<T>(result: &Result<T, Error>, kind: &ErrorKind) -> bool {
    matches!(result, Err(Error::Device(error)) if error.kind() == kind)
}

/// Waits until the connection is to end, or is interrupted.
async fn first(
    closing: impl Future<Output = Result<(), xenbus::Error>>,
    interrupted: impl Future<Output = Interruption>,
) -> Result<Option<Interruption>, Error> {
    let (mut closing, mut interrupted) = (pin!(closing), pin!(interrupted));
    poll_fn(|context| {
        if let Poll::Ready(interruption) = interrupted.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(interruption)));
        }
        closing.as_mut().poll(context).map(|result| result.map(|()| None).map_err(Error::from))
    })
    .await
}
