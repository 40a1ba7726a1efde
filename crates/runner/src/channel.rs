//! The channel a runner inherits from `offshoot`.
//!
//! Unix: standard input is one end of a socket pair, used in both directions; standard output and
//! error stay free for logs of libraries that write there. Elsewhere: the standard input and
//! output pipes (compiled, but not verified on Windows yet).

use std::io;

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
