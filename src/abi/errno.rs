//! Error numbers that hypercalls return (`errno.h`).

use core::fmt;

/// An error number of Xen, as a positive value; numbers that this crate does not know are kept.
#[doc(alias = "XEN_ERRNO")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*

            /// The symbolic name, if this crate knows the number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "The caller may not do this.";
    ENOENT = 2, "The object named does not exist.";
    ESRCH = 3, "The domain named does not exist.";
    EIO = 5, "Input or output failed.";
    E2BIG = 7, "The argument is too large.";
    EAGAIN = 11, "Try again later.";
    ENOMEM = 12, "Xen or the domain is out of memory.";
    EACCES = 13, "Access is denied.";
    EFAULT = 14, "A pointer argument is not mapped.";
    EBUSY = 16, "The object is in use.";
    EEXIST = 17, "The object exists already.";
    ENODEV = 19, "There is no such device.";
    EINVAL = 22, "An argument is invalid.";
    ENOSPC = 28, "No space or no free slot is left.";
    ENOSYS = 38, "This hypercall or operation does not exist here.";
    ENODATA = 61, "There is no data.";
    ETIME = 62, "The deadline has passed.";
    EOPNOTSUPP = 95, "This operation is not supported here.";
    ETIMEDOUT = 110, "The operation timed out.";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Xen error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
