//! pc-track
