//! Page tables: the address space by region, the mapper that builds tables, and the tables in force.

pub(super) mod active;
pub(super) mod address_space;
pub(super) mod mapper;
