//! librados: handles, operations and their answers. All `unsafe` code of the package is here.

pub mod cluster;
pub mod completion;
pub mod data_pools;
pub mod diagnosis;
pub mod errno;
pub mod error;
mod handle;
pub mod ioctx;
pub mod lock;
pub mod memory;
pub mod omap;
pub mod pages;
