//! pc-trace
