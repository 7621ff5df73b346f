//! pc-capture
