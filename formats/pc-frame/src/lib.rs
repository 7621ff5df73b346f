//! pc-frame
