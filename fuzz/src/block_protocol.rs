//! The block protocol's pure part: ring entries, geometry, limits and names that a peer or a toolstack makes up.

use domu::block::protocol::{
    DeviceNumber, Features, Geometry, INDIRECT_PAGES, INDIRECT_SEGMENTS, Payload, REQUEST_SIZE, RESPONSE_SIZE,
    RawFeatures, RawGeometry, Request, Response, SECTOR, SEGMENTS, Sectors, Segment, segments, split,
};

use crate::input::Input;

/// A decoded entry is within the header's limits and is encoded to what decodes to it again; a range lies on its disk; the parts
/// of a transfer cover it.
pub fn block_protocol(bytes: &[u8]) {
    let input = Input::new(bytes);
    let mut entry = [0; REQUEST_SIZE];
    entry.fill_with(|| input.u8());
    let most = input.u16();
    if let Ok(request) = Request::decode(&entry, most) {
        assert_eq!(request.operation as u8, Request::operation_of(&entry));
        assert_eq!(request.id, Request::id_of(&entry));
        match request.payload {
            Payload::Direct { count, .. } => assert!(usize::from(count) <= SEGMENTS),
            Payload::Indirect { count, .. } => {
                assert!(count > 0 && count <= most && usize::from(count) <= INDIRECT_PAGES * INDIRECT_SEGMENTS);
            }
            Payload::Discard { .. } => {}
        }
        let again = Request::decode(&request.encode(), most).expect("what was decoded is well formed");
        assert_eq!(again.encode(), request.encode());
    }
    let mut entry = [0; RESPONSE_SIZE];
    entry.fill_with(|| input.u8());
    let response = Response::decode(&entry);
    assert_eq!(Response::decode(&response.encode()), response);
    if let Ok(segment) = Segment::decode(core::array::from_fn(|_| input.u8())) {
        assert!(segment.first <= segment.last && segment.last <= 7 && segment.sectors() <= 8);
    }
    let sector_size = if input.u8().is_multiple_of(2) { 1 << (input.u8() % 64) } else { u64::from(input.u16()) };
    let physical_sector_size = (input.u8().is_multiple_of(2)).then(|| u64::from(input.u32()));
    let raw = RawGeometry { sectors: input.u64(), sector_size, physical_sector_size, info: input.u64() };
    let Ok(disk) = Geometry::new(raw) else { return };
    let features = Features::new(
        RawFeatures {
            discard: true,
            discard_granularity: input.u64(),
            discard_alignment: input.u64(),
            max_indirect_segments: input.u64(),
            ..RawFeatures::default()
        },
        disk,
    );
    assert!(features.segments() >= SEGMENTS && features.segments() <= INDIRECT_PAGES * INDIRECT_SEGMENTS);
    let size = u64::from(disk.sector_size());
    let (position, length) = (input.u64() / size * size, u64::from(input.u16()) * size);
    if let Ok(range) = Sectors::of_bytes(position, length, disk) {
        assert!(range.first() * SECTOR + range.count() * SECTOR <= disk.bytes());
        let _ = features.discard.map(|limits| limits.accepts(range));
        let (mut page, mut sectors) = (0, 0);
        while let Some(part) = split(range, page, usize::from(input.u8())) {
            sectors += segments(part, 0..).map(Segment::sectors).sum::<u64>();
            page += part.pages;
        }
        assert_eq!(sectors, range.count());
    }
    let _ = disk.resized(input.u64());
    let name: Vec<u8> = (0..input.u8() % 12).map(|_| input.u8()).collect();
    if let Ok(number) = String::from_utf8_lossy(&name).parse::<DeviceNumber>() {
        let _ = number.to_string();
    }
}
