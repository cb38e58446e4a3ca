//! Any bytes as a vnet header before a frame.
//!
//! Input: the header, 10 bytes in the machine's byte order; the frame.
#![no_main]

use fdlink::offload::checksum::complete;
use fdlink::offload::vnet::{RxChecksum, TxOffload, VnetHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(header) = VnetHeader::parse(data) else {
        assert!(data.len() < VnetHeader::LEN);
        return;
    };
    let (bytes, frame) = data.split_at(VnetHeader::LEN);
    assert_eq!(header.to_bytes(), bytes);
    let mut long = [0xff; VnetHeader::LEN_MRG];
    header.write(&mut long);
    assert_eq!(long, [bytes, &[0, 0]].concat()[..]);

    let len = frame.len();
    let (Ok(checksum), Ok(gso)) = (header.checksum(len), header.gso(len)) else {
        return;
    };
    let mut offload = TxOffload { checksum: None, gso };
    if let RxChecksum::Partial(field) = checksum {
        assert!(field.fits(len));
        assert_eq!(complete(&mut frame.to_vec(), field), Ok(()));
        offload.checksum = Some(field);
    }
    if let Some(gso) = gso {
        assert!(gso.size > 0 && usize::from(gso.header_len) <= len);
    }
    // Sent on as it came, it says the same of the frame; or no more than there is to do.
    let sent = VnetHeader::for_tx(offload, 0);
    assert_eq!(sent.gso(len), Ok(gso));
    match checksum {
        RxChecksum::Partial(_) => assert_eq!(sent.checksum(len), Ok(checksum)),
        RxChecksum::Unverified | RxChecksum::Valid => {
            assert_eq!(sent.checksum(len), Ok(RxChecksum::Unverified));
        }
    }
    let as_long = offload.for_frame_len(len);
    assert_eq!(as_long.checksum, offload.checksum);
    assert!(as_long.gso.is_none() || as_long.gso == gso);
});
