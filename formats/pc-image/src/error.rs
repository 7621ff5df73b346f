//! Errors by blame.

/// What can go wrong between records and bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[source] std::io::Error),
}
