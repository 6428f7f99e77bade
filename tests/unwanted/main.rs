//! Unwanted callers of a server that asks for credentials: bad certificates, other languages than
//! TLS, callers who stall or hoard; and what would open it to them: broken files and settings.

#[path = "../common/mod.rs"]
mod common;

mod caller;
mod caps;
mod certificates;
mod child;
mod configurations;
mod descriptors;
mod forge;
mod protocols;
mod reload;
mod stalls;
