//! One page of a list: how much was asked for, where it begins, and the token for the next. It
//! knows neither what is listed nor how that is written.

use std::{fmt::Display, str::FromStr};

use super::error::Error;
use crate::{ids::IdError, limits, status::Reason};

/// What a page is asked for with. `Id` orders the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<Id> {
    /// The last of the page before.
    pub after: Option<Id>,
    size: u32,
}

impl<Id: FromStr<Err = IdError> + Display> Page<Id> {
    /// Reads what an operator sent: no size is the usual one, a large one is cut, and an empty
    /// token is the beginning.
    pub fn parse(size: u32, token: &str) -> Result<Self, Error> {
        let size = if size == 0 { limits::PAGE_SIZE } else { size.min(limits::PAGE_SIZE_MAX) };
        let after = if token.is_empty() { None } else { Some(decode(token)?) };
        Ok(Self { after, size })
    }

    /// Returns how many to ask the store for: one more than is shown, to know whether there is a
    /// next page.
    pub fn limit(&self) -> u32 {
        self.size + 1
    }

    /// Leaves in `items` what this page shows, and returns the token of the next page, empty at the
    /// end. A page ends early when it is heavy, so that its message is one that any gRPC client
    /// takes.
    pub fn cut<T>(
        &self,
        items: &mut Vec<T>,
        id: impl Fn(&T) -> &Id,
        bytes: impl Fn(&T) -> usize,
    ) -> String {
        let mut total = 0_usize;
        let mut fits = |item: &T| {
            total = total.saturating_add(bytes(item));
            total <= limits::PAGE_BYTES_MAX
        };
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        // The first is shown whatever it weighs: a page that shows none would never end.
        let shown = items.iter().take(size).map_while(|item| fits(item).then_some(())).count();
        let shown = shown.max(1);
        if items.len() <= shown {
            return String::new();
        }
        items.truncate(shown);
        items.last().map(|last| encode(id(last))).unwrap_or_default()
    }
}

/// Hexadecimal, so that nobody takes a token for an id, or makes one up.
fn encode(id: &impl Display) -> String {
    let text = id.to_string();
    let digits = text.bytes().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn decode<Id: FromStr<Err = IdError>>(token: &str) -> Result<Id, Error> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = token.as_bytes().chunks(2).map(byte).collect();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::refused(Reason::InvalidArgument, "the page token is not one of this server's")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, TransferId};

    fn ids(count: usize) -> Vec<ClientId> {
        (0..count).map(|n| format!("c{n:04}").parse().expect("an id")).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repetition() {
        let all = ids(25);
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = Page::<ClientId>::parse(10, &token).expect("a page");
            let rest = all.iter().filter(|id| page.after.as_ref().is_none_or(|after| *id > after));
            let mut items: Vec<_> = rest.take(page.limit() as usize).cloned().collect();
            token = page.cut(&mut items, |id| id, |_| 1);
            assert!(items.len() <= 10);
            seen.extend(items);
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_full_last_page_has_no_token() {
        let page = Page::<ClientId>::parse(10, "").expect("a page");
        let mut items = ids(10);
        assert_eq!(page.cut(&mut items, |id| id, |_| 1), "");
        assert_eq!(items.len(), 10);
    }

    #[test]
    fn a_heavy_page_ends_early_but_never_empty() {
        let page = Page::<ClientId>::parse(10, "").expect("a page");
        let mut items = ids(10);
        let token = page.cut(&mut items, |id| id, |_| limits::PAGE_BYTES_MAX / 3);
        assert_eq!(items.len(), 3);
        assert_ne!(token, "");

        let mut items = ids(10);
        page.cut(&mut items, |id| id, |_| limits::PAGE_BYTES_MAX + 1);
        assert_eq!(items.len(), 1);
    }

    #[test]
    fn sizes_are_bounded() {
        let limit = |size| Page::<TransferId>::parse(size, "").map(|page| page.limit());
        assert_eq!(limit(0).ok(), Some(limits::PAGE_SIZE + 1));
        assert_eq!(limit(1).ok(), Some(2));
        assert_eq!(limit(u32::MAX).ok(), Some(limits::PAGE_SIZE_MAX + 1));
    }

    #[test]
    fn a_token_that_is_not_ours_is_refused() {
        let own = encode(&TransferId::generate());
        assert!(Page::<TransferId>::parse(0, &own).is_ok());
        let upper = encode(&"X".repeat(100_000));
        for bad in ["x", "zz", "6", "é", "ff", "2f", &own[1..], &upper, &"0".repeat(100)] {
            let err = Page::<TransferId>::parse(0, bad).expect_err("refused");
            assert_eq!(err.reason(), Reason::InvalidArgument, "{bad}");
        }
    }
}
