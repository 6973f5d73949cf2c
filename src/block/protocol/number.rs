//! Numbers and names of disks (`docs/man/xen-vbd-interface.7`).

use core::fmt;
use core::str::FromStr;

/// The number of a disk in xenstore, such as 51712, which is `xvda`.
#[doc(alias = "virtual-device")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceNumber(pub u32);

/// A name that is neither that of a disk nor a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseNumberError;

impl fmt::Display for ParseNumberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a disk's name (xvda, sda, hda) or number")
    }
}

impl core::error::Error for ParseNumberError {}

const XVD: u32 = 202 << 8;
const SD: u32 = 8 << 8;
const HDA: u32 = 3 << 8;
const HDC: u32 = 22 << 8;
const EXTENDED: u32 = 1 << 28;

impl DeviceNumber {
    /// Disk and partition by the number of an `xvd` device; partition 0 is the whole disk.
    const fn xvd(disk: u32, partition: u32) -> Self {
        if disk < 16 && partition < 16 {
            Self(XVD | disk << 4 | partition)
        } else {
            Self(EXTENDED | disk << 8 | partition)
        }
    }

    /// The prefix of the name, the disk and the partition.
    const fn parts(self) -> Option<(&'static str, u32, u32)> {
        let low = self.0 & 0xff;
        match self.0 {
            number if number & EXTENDED != 0 && number < EXTENDED << 1 => {
                Some(("xvd", number >> 8 & 0xf_ffff, number & 0xff))
            }
            number if number & !0xff == XVD => Some(("xvd", low >> 4, low & 15)),
            number if number & !0xff == SD => Some(("sd", low >> 4, low & 15)),
            number if number & !0xff == HDA => Some(("hd", low >> 6, low & 63)),
            number if number & !0xff == HDC => Some(("hd", (low >> 6) + 2, low & 63)),
            _ => None,
        }
    }
}

/// A disk's letters: `a` to `z`, then `aa` and so on.
fn letters(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_lowercase()).unwrap_or(text.len());
    let mut disk = 0u32;
    for letter in text[..end].bytes() {
        disk = disk.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    Some((disk.checked_sub(1)?, &text[end..]))
}

impl FromStr for DeviceNumber {
    type Err = ParseNumberError;

    fn from_str(text: &str) -> Result<Self, ParseNumberError> {
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let by_name = || {
            let (kind, rest) = ["xvd", "sd", "hd"].iter().find_map(|kind| Some((*kind, text.strip_prefix(kind)?)))?;
            let (disk, rest) = letters(rest)?;
            let partition = match rest {
                "" => 0,
                rest if rest.starts_with(['+', '-', '0']) => return None,
                rest => rest.parse::<u32>().ok()?,
            };
            match kind {
                "xvd" if disk < 1 << 20 && partition < 256 => Some(Self::xvd(disk, partition)),
                "sd" if disk < 16 && partition < 16 => Some(Self(SD | disk << 4 | partition)),
                "hd" if disk < 2 && partition < 64 => Some(Self(HDA | disk << 6 | partition)),
                "hd" if disk < 4 && partition < 64 => Some(Self(HDC | (disk - 2) << 6 | partition)),
                _ => None,
            }
        };
        by_name().ok_or(ParseNumberError)
    }
}

/// The name if there is one, else the number.
impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((prefix, disk, partition)) = self.parts() else { return write!(f, "vbd {}", self.0) };
        f.write_str(prefix)?;
        // At most 20 bits: five letters.
        let (mut letters, mut start, mut left) = ([0; 5], 5, disk + 1);
        while left > 0 && start > 0 {
            start -= 1;
            letters[start] = b'a' + ((left - 1) % 26) as u8;
            left = (left - 1) / 26;
        }
        f.write_str(core::str::from_utf8(&letters[start..]).unwrap_or_default())?;
        if partition > 0 { write!(f, "{partition}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn names_are_those_of_the_manual() {
        for (name, number) in [
            ("xvda", 51_712),
            ("xvdb", 51_728),
            ("xvda1", 51_713),
            ("xvdp15", 51_967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("sda", 2048),
            ("hda", 768),
            ("hdb1", 833),
            ("hdc", 5632),
        ] {
            assert_eq!(name.parse(), Ok(DeviceNumber(number)), "{name}");
            assert_eq!(DeviceNumber(number).to_string(), name);
        }
        assert_eq!("51712".parse(), Ok(DeviceNumber(51_712)));
        assert_eq!(DeviceNumber(7).to_string(), "vbd 7");
        for name in [
            "",
            "xvd",
            "xvdA",
            "xvda01",
            "xvda256",
            "sdq",
            "hde",
            "vda",
            "xvda-1",
            "xvdaaaaaaaaaaaaaaaaa",
            "4294967296",
        ] {
            assert_eq!(name.parse::<DeviceNumber>(), Err(ParseNumberError), "{name}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "a million names")]
    fn every_extended_name_is_read_back() {
        for disk in (0..1 << 20).step_by(7) {
            let number = DeviceNumber::xvd(disk, 16);
            assert_eq!(number.to_string().parse(), Ok(number));
        }
    }
}
