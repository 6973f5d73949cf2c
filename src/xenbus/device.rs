//! Where the two ends of a device are, and which devices there are.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::{Error, ErrorKind, State};
use crate::abi::xen::DomainId;
use crate::xenstore::{self, Nodes, Path, Value, Xenstore};

/// Devices of one class that [`frontends`] and [`backends`] list at most; their paths have at most
/// [`MAX_LISTING`](xenstore::MAX_LISTING) bytes in all. [`backends`] looks at as many domains at most.
pub const MAX_DEVICES: usize = 1024;

/// Which end of a device is this domain's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Front,
    Back,
}

impl Role {
    /// The names of the nodes that say where the other end is, and whose.
    const fn link(self) -> (&'static str, &'static str) {
        match self {
            Self::Front => ("backend", "backend-id"),
            Self::Back => ("frontend", "frontend-id"),
        }
    }
}

/// Where the two ends of a device are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    path: Path,
    link: Path,
    peer_path: Path,
    peer: DomainId,
}

impl Device {
    /// The directory of this end.
    #[must_use]
    pub const fn path(&self) -> &Path {
        &self.path
    }

    /// The device's number, as text: `0` for the first network interface, `51712` for `xvda`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.path.name()
    }

    /// The directory of the other end.
    #[doc(alias = "otherend")]
    #[must_use]
    pub const fn peer_path(&self) -> &Path {
        &self.peer_path
    }

    /// The domain of the other end: what its grants and event channels are for.
    #[doc(alias("otherend_id", "backend-id", "frontend-id"))]
    #[must_use]
    pub const fn peer(&self) -> DomainId {
        self.peer
    }

    /// Reads where the ends of a device are; waits for what is missing, as long as there is the device.
    pub(super) async fn find(store: &Xenstore, path: Path, role: Role) -> Result<Self, ErrorKind> {
        let me = store.read("domid").await?.number::<u16>()?;
        let (link, number) = role.link();
        let (link, number, state) = (path.join(link)?, path.join(number)?, path.join("state")?);
        let mut watch = store.watch(&path).await?;
        loop {
            watch.next().await?;
            // Of one moment, as a device may be removed and made anew between two reads.
            let found = store
                .transaction::<_, ErrorKind>(async |nodes| {
                    nodes.read(&path).await.map_err(gone)?;
                    let Some(link) = read(nodes, &link).await? else { return Ok(None) };
                    let Some(number) = read(nodes, &number).await? else { return Ok(None) };
                    Ok(read_state(nodes, &state).await?.map(|_| (link, number)))
                })
                .await?;
            let Some((text, number)) = found else { continue };
            let peer = number.number::<u16>().map_err(|_| ErrorKind::Misplaced)?;
            let peer_path = text.as_str().ok().and_then(|text| Path::new(text).ok()).ok_or(ErrorKind::Misplaced)?;
            let right = peer < DomainId::SELF.0 && is_in_place(role, &path, me, &peer_path, peer);
            return right.then_some(Self { path, link, peer_path, peer: DomainId(peer) }).ok_or(ErrorKind::Misplaced);
        }
    }

    /// Whether the device says still that its other end is there.
    pub(super) async fn is_linked(&self, nodes: &Nodes) -> Result<bool, ErrorKind> {
        Ok(read(nodes, &self.link).await?.is_some_and(|link| link == *self.peer_path.as_str()))
    }
}

/// Whether the other end of a device is where toolstacks put it. Its class may be another: a disk's back end may be a `qdisk`.
fn is_in_place(role: Role, path: &Path, me: u16, peer_path: &Path, peer: u16) -> bool {
    let is = |text: &str, domain: u16| *text == *domain.to_string();
    let names: Vec<&str> = peer_path.as_str().split('/').collect();
    match (role, &names[..]) {
        (Role::Front, ["", "local", "domain", domain, "backend", _, front, id]) => {
            is(domain, peer) && is(front, me) && *id == path.name()
        }
        (Role::Back, ["", "local", "domain", domain, "device", _, id]) => {
            is(domain, peer) && path.parent().is_some_and(|above| is(above.name(), peer)) && *id == path.name()
        }
        _ => false,
    }
}

/// The error of a node of this domain's own.
fn gone(error: xenstore::Error) -> ErrorKind {
    if error == xenstore::ErrorKind::NotFound { ErrorKind::Gone } else { error.into() }
}

/// A value, or that there is none. Of what was removed together with what is above the server says that it is denied: it
/// looks for rights higher up, where a guest has none.
pub(super) async fn read(nodes: &Nodes, path: &Path) -> Result<Option<Value>, ErrorKind> {
    match nodes.read(path).await {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), xenstore::ErrorKind::NotFound | xenstore::ErrorKind::Denied) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A state, or that there is none.
pub(super) async fn read_state(nodes: &Nodes, path: &Path) -> Result<Option<State>, ErrorKind> {
    let Some(value) = read(nodes, path).await? else { return Ok(None) };
    value.number().map(|number| Some(State(number))).map_err(|_| ErrorKind::InvalidState)
}

/// The devices of a class whose front ends are this domain's: their directories, for [`Frontend::open`](super::Frontend::open).
///
/// [`Xenstore::watch`] of `device/` and the class tells when there may be others.
///
/// # Errors
///
/// [`ErrorKind::TooManyDevices`]; those of [`directory`](Nodes::directory), except for a missing node.
///
/// # Cancel safety
///
/// Nothing is lost by dropping the future.
pub async fn frontends(store: &Xenstore, class: &str) -> Result<Vec<Path>, Error> {
    list_frontends(store, class).await.map_err(|kind| kind.at(class))
}

/// The devices of a class whose back ends are this domain's: their directories, for [`Backend::open`](super::Backend::open).
///
/// [`Xenstore::watch`] of `backend/` and the class tells when there may be others.
///
/// # Errors
///
/// [`ErrorKind::TooManyDevices`]; those of [`directory`](Nodes::directory), except for a missing node.
///
/// # Cancel safety
///
/// Nothing is lost by dropping the future.
pub async fn backends(store: &Xenstore, class: &str) -> Result<Vec<Path>, Error> {
    list_backends(store, class).await.map_err(|kind| kind.at(class))
}

async fn list_frontends(store: &Xenstore, class: &str) -> Result<Vec<Path>, ErrorKind> {
    let mut devices = Vec::new();
    add_below(store, &Path::new("device")?.join(class)?, &mut devices).await?;
    Ok(devices)
}

async fn list_backends(store: &Xenstore, class: &str) -> Result<Vec<Path>, ErrorKind> {
    let (mut domains, mut devices) = (Vec::new(), Vec::new());
    add_below(store, &Path::new("backend")?.join(class)?, &mut domains).await?;
    for domain in &domains {
        add_below(store, domain, &mut devices).await?;
    }
    Ok(devices)
}

/// Adds the directories below one, which need not be there, up to [`MAX_DEVICES`] of [`MAX_LISTING`](xenstore::MAX_LISTING)
/// bytes in all.
async fn add_below(store: &Xenstore, path: &Path, found: &mut Vec<Path>) -> Result<(), ErrorKind> {
    let names = match store.directory(path).await {
        Err(error) if error == xenstore::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    let mut bytes: usize = found.iter().map(|path| path.as_str().len()).sum();
    for name in &names {
        bytes += path.as_str().len() + 1 + name.len();
        if found.len() == MAX_DEVICES || bytes > xenstore::MAX_LISTING {
            return Err(ErrorKind::TooManyDevices);
        }
        found
            .try_reserve(1)
            .map_err(|_| xenstore::ErrorKind::OutOfMemory.at(xenstore::Operation::Directory, path.as_str()))?;
        found.push(path.join(name)?);
    }
    Ok(())
}
