//! VXLAN.
