//! What xenstore knows of domains, and what only a privileged one may ask of it.

use alloc::vec::Vec;
use core::str;

use super::wire::{self, Payload};
use super::{Error, ErrorKind, Operation, Path, Xenstore};
use crate::abi::xen::DomainId;
use crate::abi::xs_wire::MessageType;

/// What is asked about a domain.
fn about(domain: DomainId) -> Result<Payload, ErrorKind> {
    Ok(Payload::new().number(u64::from(domain.0))?)
}

/// Errors are those of a connection, and [`ErrorKind::Denied`]. Dropping the future of a request withdraws it if the server does
/// not have it yet.
impl Xenstore {
    /// The home of a domain, below which relative paths of its are. It need not exist.
    ///
    /// # Errors
    ///
    /// Those of a connection.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    #[doc(alias("XS_GET_DOMAIN_PATH", "xs_get_domain_path"))]
    pub async fn home_of(&self, domain: DomainId) -> Result<Path, Error> {
        self.home(domain).await.map_err(|kind| kind.of(Operation::HomeOf))
    }

    async fn home(&self, domain: DomainId) -> Result<Path, ErrorKind> {
        let answer = self.ask(MessageType::GET_DOMAIN_PATH, about(domain)?).await?;
        let path = str::from_utf8(wire::string(&answer)?).map_err(|_| ErrorKind::Malformed)?;
        Path::new(path).ok().filter(Path::is_absolute).ok_or(ErrorKind::Malformed)
    }

    /// Whether xenstore serves a domain. Servers tell privileged domains only, and some any.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`]; those of a connection.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    #[doc(alias("XS_IS_DOMAIN_INTRODUCED", "xs_is_domain_introduced"))]
    pub async fn is_introduced(&self, domain: DomainId) -> Result<bool, Error> {
        self.introduced(domain).await.map_err(|kind| kind.of(Operation::IsIntroduced))
    }

    async fn introduced(&self, domain: DomainId) -> Result<bool, ErrorKind> {
        match wire::string(&self.ask(MessageType::IS_DOMAIN_INTRODUCED, about(domain)?).await?)? {
            b"T" => Ok(true),
            b"F" => Ok(false),
            _ => Err(ErrorKind::Malformed),
        }
    }

    /// Has the server forget all watches of this domain, such as a program left that ran in it before, and then asks for
    /// those anew that are in use. The server forgets transactions too: those that are open fail.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] by a server that cannot; those of a connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing but whether the server is asked.
    #[doc(alias = "XS_RESET_WATCHES")]
    pub async fn reset_watches(&self) -> Result<(), Error> {
        let payload = Payload::new().string("").map_err(ErrorKind::from);
        self.obeyed(MessageType::RESET_WATCHES, payload).await.map_err(|kind| kind.of(Operation::ResetWatches))
    }

    /// Sends a request that this crate has no method for, outside of any transaction, and returns what the answer holds:
    /// `strings`, each with a NUL behind it. Most of those are for privileged domains: [`INTRODUCE`](MessageType::INTRODUCE),
    /// [`RELEASE`](MessageType::RELEASE), [`RESUME`](MessageType::RESUME), [`SET_TARGET`](MessageType::SET_TARGET),
    /// [`CONTROL`](MessageType::CONTROL), and features and quotas.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] with `EINVAL`, and nothing was sent, for a request that this crate keeps account of: those of
    /// watches and transactions. [`ErrorKind::InvalidValue`] if a NUL is in a string, [`ErrorKind::TooLong`]. Those of a connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the request if the server does not have it yet.
    pub async fn request(&self, ty: MessageType, strings: &[&[u8]]) -> Result<Vec<u8>, Error> {
        use MessageType as Type;
        if matches!(
            ty,
            Type::WATCH
                | Type::UNWATCH
                | Type::RESET_WATCHES
                | Type::TRANSACTION_START
                | Type::TRANSACTION_END
                | Type::WATCH_EVENT
                | Type::ERROR
        ) {
            return Err(ErrorKind::Refused(super::Code::Invalid).of(Operation::Request(ty)));
        }
        let answer = match strings.iter().try_fold(Payload::new(), |payload, text| payload.string(text)) {
            Ok(payload) => self.ask(ty, payload).await,
            Err(unsendable) => Err(unsendable.into()),
        };
        answer.map_err(|kind| kind.of(Operation::Request(ty)))
    }
}
