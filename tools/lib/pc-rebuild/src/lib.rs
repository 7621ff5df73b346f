//! pc-rebuild
