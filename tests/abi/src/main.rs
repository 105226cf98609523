//! Fails if a declaration of `ceph-sys` differs from the installed headers. Run it on each Ceph release supported.

#![allow(bad_style, dead_code, clippy::all)] // generated code, in the headers' names

use ceph_sys::*;

include!(concat!(env!("OUT_DIR"), "/abi.rs"));
