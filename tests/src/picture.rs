//! A picture to upload: a PNG that image libraries read, small and never the same twice.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

/// A square with a gradient of `seed`'s colour (PNG specification, sections 5 and 11).
pub fn png(side: u32, seed: u8) -> Vec<u8> {
    let mut rows = Vec::new();
    for y in 0..side {
        rows.push(0); // no filter
        for x in 0..side {
            rows.extend_from_slice(&[(x * 255 / side) as u8, (y * 255 / side) as u8, seed]);
        }
    }
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&rows).expect("a Vec takes everything");
    let packed = packed.finish().expect("a Vec takes everything");

    let mut header = Vec::new();
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]); // 8 bits, RGB
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", packed), (b"IEND", Vec::new())] {
        let length = u32::try_from(content.len()).expect("a small picture");
        png.extend_from_slice(&length.to_be_bytes());
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&content);
        png.extend_from_slice(kind);
        png.extend_from_slice(&content);
        png.extend_from_slice(&crc.sum().to_be_bytes());
    }
    png
}
