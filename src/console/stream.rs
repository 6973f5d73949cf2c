//! The console behind the traits of `embedded-io-async`, for code that is written against those.

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};

use super::{Console, Error};

impl embedded_io_async::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent => ErrorKind::NotConnected,
            Self::Stalled => ErrorKind::TimedOut,
            Self::Corrupt | Self::LineTooLong => ErrorKind::InvalidData,
            Self::Port(_) => ErrorKind::Other,
            Self::OutOfMemory => ErrorKind::OutOfMemory,
        }
    }
}

impl ErrorType for Console {
    type Error = Error;
}

impl Read for Console {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        Console::read(self, bytes).await
    }
}

impl Write for Console {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        Console::write(self, bytes).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        Console::flush(self).await
    }
}
