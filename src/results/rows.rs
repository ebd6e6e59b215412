//! Rows inside a part: each value a big-endian `i32` length, -1 for NULL, then its text.

use crate::results::ResultError;

/// One value; `None` for NULL.
pub(super) type Value<'v> = Option<&'v [u8]>;

/// Appends one row.
pub(super) fn append<'v>(buffer: &mut Vec<u8>, values: impl Iterator<Item = Value<'v>>) -> Result<(), ResultError> {
    for value in values {
        match value {
            None => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(bytes) => {
                let length = i32::try_from(bytes.len()).map_err(|_| ResultError::TooLarge)?;
                buffer.extend_from_slice(&length.to_be_bytes());
                buffer.extend_from_slice(bytes);
            }
        }
    }
    Ok(())
}

/// Calls `each` for every row of a part.
pub(super) fn for_each<'p>(
    part: &'p [u8],
    columns: usize,
    rows: u64,
    mut each: impl FnMut(&[Value<'p>]),
) -> Result<(), ResultError> {
    let mut rest = part;
    let mut values: Vec<Value<'p>> = Vec::with_capacity(columns);
    for _ in 0..rows {
        values.clear();
        for _ in 0..columns {
            values.push(take(&mut rest)?);
        }
        each(&values);
    }
    if rest.is_empty() { Ok(()) } else { Err(ResultError::Damaged("it holds more than its rows")) }
}

fn take<'p>(rest: &mut &'p [u8]) -> Result<Value<'p>, ResultError> {
    const SHORT: ResultError = ResultError::Damaged("it ends within a row");
    let (length, after) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let length = i32::from_be_bytes(*length);
    if length < 0 {
        *rest = after;
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| SHORT)?;
    let (value, after) = after.split_at_checked(length).ok_or(SHORT)?;
    *rest = after;
    Ok(Some(value))
}
