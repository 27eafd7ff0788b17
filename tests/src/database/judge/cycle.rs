//! Whether things that must each come before others can be put in an order. Called by appends.rs.

/// `after[n]` names what must come after n. Gives the members of a circle, or nothing if there is an order.
pub fn circle(after: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut before = vec![0_usize; after.len()];
    after.iter().flatten().for_each(|n| before[*n] += 1);
    let mut free: Vec<usize> = (0..after.len()).filter(|n| before[*n] == 0).collect();
    while let Some(n) = free.pop() {
        for next in &after[n] {
            before[*next] -= 1;
            if before[*next] == 0 {
                free.push(*next);
            }
        }
    }
    // What is left has a predecessor that is left too: going back leads into a circle.
    let mut came_from: Vec<Option<usize>> = vec![None; after.len()];
    for (n, nexts) in after.iter().enumerate().filter(|(n, _)| before[*n] > 0) {
        nexts.iter().filter(|next| before[**next] > 0).for_each(|next| came_from[*next] = Some(n));
    }
    let mut path = vec![(0..after.len()).find(|n| before[*n] > 0)?];
    loop {
        let back = came_from[*path.last()?]?;
        if let Some(begin) = path.iter().position(|n| *n == back) {
            let mut circle = path.split_off(begin);
            circle.reverse();
            return Some(circle);
        }
        path.push(back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_order_has_no_circle() {
        assert_eq!(circle(&[]), None);
        assert_eq!(circle(&[vec![1, 2], vec![2], vec![], vec![0]]), None);
    }

    #[test]
    fn a_circle_is_named_without_what_only_leads_to_or_from_it() {
        let mut found = circle(&[vec![1], vec![2], vec![3, 4], vec![1], vec![]]).unwrap();
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3]);
        assert_eq!(circle(&[vec![0]]), Some(vec![0]));
    }
}
