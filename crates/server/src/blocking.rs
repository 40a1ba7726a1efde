//! Work that takes a while, such as reading long texts, away from the threads on which others wait.

use crate::failure::{Failure, Kind};

/// Does `work` on a thread of its own. It goes on when nobody waits for it any more.
pub(crate) async fn blocking<T: Send + 'static, E: Into<Failure> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(panicked) => Err(Failure::new(Kind::Ours, panicked.to_string())),
    }
}
