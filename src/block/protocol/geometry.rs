//! A disk's size and flags, as the back end publishes them when it connects.

use core::fmt;

use super::{PAGE, SECTOR};

/// What the back end has published: numbers, not yet checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawGeometry {
    /// `sectors`.
    pub sectors: u64,
    /// `sector-size`.
    pub sector_size: u64,
    /// `physical-sector-size`, if it is there.
    pub physical_sector_size: Option<u64>,
    /// `info`.
    pub info: u64,
}

/// The size of a disk, and what kind it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    sectors: u64,
    sector_size: u32,
    physical_sector_size: u32,
    info: u32,
}

/// Values that no disk has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GeometryError {
    /// `sector-size` is not a power of two from 512 to 4096. A segment is at most a page, and must hold whole sectors.
    SectorSize(u64),
    /// `sectors` times 512 bytes do not fit into 64 bits.
    TooLarge(u64),
    /// `sectors` is not a multiple of `sector-size`.
    PartOfASector(u64),
    /// `physical-sector-size` is not a power of two, or smaller than `sector-size`, or above 2 GiB.
    PhysicalSectorSize(u64),
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SectorSize(size) => write!(f, "sector-size {size} is not a power of two from 512 to 4096"),
            Self::TooLarge(sectors) => write!(f, "sectors {sectors} exceed 64 bits in bytes"),
            Self::PartOfASector(sectors) => write!(f, "sectors {sectors} are not a multiple of sector-size"),
            Self::PhysicalSectorSize(size) => write!(f, "invalid physical-sector-size {size}"),
        }
    }
}

impl core::error::Error for GeometryError {}

const CDROM: u32 = 1;
const REMOVABLE: u32 = 2;
const READ_ONLY: u32 = 4;

impl Geometry {
    /// Checks what a back end has published.
    ///
    /// # Errors
    ///
    /// [`GeometryError`].
    pub fn new(raw: RawGeometry) -> Result<Self, GeometryError> {
        let sector_size = u32::try_from(raw.sector_size)
            .ok()
            .filter(|size| size.is_power_of_two() && (SECTOR as u32..=PAGE as u32).contains(size))
            .ok_or(GeometryError::SectorSize(raw.sector_size))?;
        let physical = raw.physical_sector_size.unwrap_or(raw.sector_size);
        let physical_sector_size = u32::try_from(physical)
            .ok()
            .filter(|size| size.is_power_of_two() && *size >= sector_size)
            .ok_or(GeometryError::PhysicalSectorSize(physical))?;
        raw.sectors.checked_mul(SECTOR).ok_or(GeometryError::TooLarge(raw.sectors))?;
        if !raw.sectors.is_multiple_of(u64::from(sector_size) / SECTOR) {
            return Err(GeometryError::PartOfASector(raw.sectors));
        }
        // Flags above 32 bits have no meaning today.
        Ok(Self { sectors: raw.sectors, sector_size, physical_sector_size, info: raw.info as u32 })
    }

    /// The same disk with another size, after an online resize.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn resized(self, sectors: u64) -> Result<Self, GeometryError> {
        Self::new(RawGeometry {
            sectors,
            sector_size: u64::from(self.sector_size),
            physical_sector_size: Some(u64::from(self.physical_sector_size)),
            info: u64::from(self.info),
        })
    }

    /// The size in sectors of 512 bytes, whatever [`sector_size`](Self::sector_size) is.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.sectors * SECTOR
    }

    /// Bytes of which positions and lengths are multiples.
    #[must_use]
    pub const fn sector_size(self) -> u32 {
        self.sector_size
    }

    /// Bytes that the disk writes at once. Smaller writes may cost it a read.
    #[must_use]
    pub const fn physical_sector_size(self) -> u32 {
        self.physical_sector_size
    }

    /// Whether it is a CD-ROM.
    #[doc(alias = "VDISK_CDROM")]
    #[must_use]
    pub const fn is_cdrom(self) -> bool {
        self.info & CDROM != 0
    }

    /// Whether its medium is removable.
    #[doc(alias = "VDISK_REMOVABLE")]
    #[must_use]
    pub const fn is_removable(self) -> bool {
        self.info & REMOVABLE != 0
    }

    /// Whether writes fail.
    #[doc(alias = "VDISK_READONLY")]
    #[must_use]
    pub const fn is_read_only(self) -> bool {
        self.info & READ_ONLY != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAW: RawGeometry =
        RawGeometry { sectors: 131_072, sector_size: 512, physical_sector_size: Some(4096), info: 0 };

    #[test]
    fn senseless_geometry_is_refused() {
        for size in [0, 1, 511, 513, 768, 8192, 65_536, 1 << 32, (1 << 32) + 512, u64::MAX] {
            let raw = RawGeometry { sector_size: size, physical_sector_size: None, ..RAW };
            assert_eq!(Geometry::new(raw), Err(GeometryError::SectorSize(size)));
        }
        for sectors in [u64::MAX, u64::MAX / 512 + 1] {
            assert_eq!(Geometry::new(RawGeometry { sectors, ..RAW }), Err(GeometryError::TooLarge(sectors)));
        }
        let raw = RawGeometry { sectors: 9, sector_size: 4096, ..RAW };
        assert_eq!(Geometry::new(raw), Err(GeometryError::PartOfASector(9)));
        for size in [0, 256, 3000, 1 << 32] {
            let raw = RawGeometry { physical_sector_size: Some(size), ..RAW };
            assert_eq!(Geometry::new(raw), Err(GeometryError::PhysicalSectorSize(size)));
        }
    }

    #[test]
    fn flags_and_sizes_are_those_of_the_header() {
        let disk = Geometry::new(RawGeometry { info: 5, ..RAW }).unwrap();
        assert_eq!((disk.sectors(), disk.bytes()), (131_072, 64 << 20));
        assert_eq!((disk.sector_size(), disk.physical_sector_size()), (512, 4096));
        assert!(disk.is_cdrom() && disk.is_read_only() && !disk.is_removable());
        let empty = Geometry::new(RawGeometry { sectors: 0, info: 2, ..RAW }).unwrap();
        assert!(empty.bytes() == 0 && empty.is_removable());
        assert_eq!(disk.resized(8).map(Geometry::bytes), Ok(4096));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..Default::default() })]

        #[test]
        fn any_numbers_are_refused_or_fit(sectors in any::<u64>(), size in any::<u64>(), shift in 0..64u32, info in any::<u64>()) {
            for sector_size in [size, 1 << shift] {
                let raw = RawGeometry { sectors, sector_size, physical_sector_size: None, info };
                if let Ok(disk) = Geometry::new(raw) {
                    prop_assert_eq!(disk.bytes() / SECTOR, sectors);
                    prop_assert_eq!(disk.bytes() % u64::from(disk.sector_size()), 0);
                }
            }
        }
    }
}
