//! The channel a runner inherits from `offshoot`.
//!
//! Unix: standard input is one end of a socket pair, used in both directions; standard output and
//! error stay free for logs of libraries that write there. Elsewhere: the standard input and
//! output pipes (compiled, but not verified on Windows yet).

use std::io::{self, Read};

/// Both directions of the inherited channel.
#[derive(Debug)]
pub struct Inherited<R, W> {
    /// Commands come from here.
    pub reader: R,
    /// Events go there.
    pub writer: W,
}

/// Takes over the channel this process was started with.
///
/// Fails when the process was not started by `offshoot`.
#[cfg(unix)]
pub fn inherited() -> io::Result<Inherited<impl io::Read + Send + 'static, impl io::Write>> {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.peer_addr().map_err(|_| {
        io::Error::other("standard input is not a channel: this program is started by offshoot")
    })?;
    Ok(Inherited { reader: io::BufReader::new(stream.try_clone()?), writer: stream })
}

/// Takes over the channel this process was started with.
#[cfg(not(unix))]
pub fn inherited() -> io::Result<Inherited<impl io::Read + Send + 'static, impl io::Write>> {
    Ok(Inherited { reader: io::BufReader::new(io::stdin()), writer: io::stdout() })
}

/// A reader that reports, once, that there is nothing more to read: the parent has gone.
///
/// The loop sees that between steps only, and one step can take minutes.
#[derive(Debug)]
pub struct Watched<R, F> {
    reader: R,
    on_end: Option<F>,
}

impl<R: Read, F: FnOnce()> Watched<R, F> {
    /// `on_end` is called on the reading thread, after the last byte or an error.
    pub fn new(reader: R, on_end: F) -> Self {
        Self { reader, on_end: Some(on_end) }
    }
}

impl<R: Read, F: FnOnce()> Read for Watched<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.reader.read(buffer);
        let is_over = match &result {
            Ok(n_bytes) => *n_bytes == 0 && !buffer.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::Interrupted,
        };
        if is_over && let Some(on_end) = self.on_end.take() {
            on_end();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone;

    impl Read for Gone {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    fn check(reader: impl Read, n_reads: usize, n_reports: u32) {
        let mut count = 0;
        let mut watched = Watched::new(reader, || count += 1);
        for _ in 0..n_reads {
            let _ = watched.read(&mut [0; 2]);
        }
        drop(watched);
        assert_eq!(count, n_reports);
    }

    #[test]
    fn the_end_of_the_channel_is_reported_once_and_not_before() {
        check(&b"abcd"[..], 2, 0);
        check(&b"abcd"[..], 3, 1);
        check(&b"abcd"[..], 5, 1);
        check(Gone, 3, 1);
    }
}
