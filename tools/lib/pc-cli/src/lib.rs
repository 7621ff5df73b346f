//! pc-cli
