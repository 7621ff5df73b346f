//! pc-sys
