//! What `sql` asks before it passes on a write or a COMMIT: whether the files that the site has written so far
//! on this server are safe, so that no row can name a file that is lost. Called by `session`.
//!
//! Until volumes are replicated there is nothing to wait for, and it answers at once.

use kopek_core::SiteName;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FilesBarrier;

impl FilesBarrier {
    /// Ends when every change of the site's files that was made on this server before the call is safe.
    pub(crate) async fn settled(self, _site: &SiteName) {}
}
