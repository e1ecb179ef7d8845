//! Stage 4: events to the collector, acknowledgements back.

/// Who this host is for its collector.
mod credentials;
/// Joining and renewing.
mod enrol;
/// Dialling and frames.
mod quic;
/// Trust.
mod tls;

pub use credentials::{Credentials, IDENTITY_FOLDER, NoCredentials};
pub use enrol::join;
