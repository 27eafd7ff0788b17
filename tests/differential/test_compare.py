"""What counts as the same. Run: python3 -m unittest discover -s tests/differential"""

import unittest

from compare import BadList, Outcome, known_differences, verdict
from mtr import parse

PASS, SKIP = Outcome("pass", "", 5), Outcome("skip", "Need windows", 0)


def fail(text):
    return Outcome("fail", text, 0)


def sorted_out(direct, proxied, known="", mode="plain"):
    return verdict({"main.a 'x'": direct}, {"main.a 'x'": proxied}, known_differences(known), mode)


class ATestIsTheSame(unittest.TestCase):
    def test_when_it_passes_both_ways_however_long_it_takes(self):
        self.assertEqual(sorted_out(PASS, Outcome("pass", "", 900)).same, ["main.a 'x'"])

    def test_when_it_fails_both_ways_with_the_same_difference(self):
        told = "Test ended at 2026-11-25 03:53:19\n@@ -1 +1 @@\n-1\n+2\nmysqltest: Result content mismatch"
        later = told.replace("03:53:19", "04:00:00")
        self.assertEqual(sorted_out(fail(told), fail(later)).new, [])

    def test_when_only_folders_and_ports_differ(self):
        one = "mysqltest: cannot connect to localhost:19000 in /dev/shm/kopek-differential-ab/mtr-ps-1-direct/var/1/x"
        two = "mysqltest: cannot connect to localhost:19030 in /dev/shm/kopek-differential-cd/mtr-ps-2-proxied/var/2/x"
        self.assertEqual(sorted_out(fail(one), fail(two)).new, [])


class ATestDiffers(unittest.TestCase):
    def test_when_it_fails_one_way_only(self):
        self.assertEqual(sorted_out(PASS, fail("mysqltest: At line 3")).new, ["main.a 'x'"])
        self.assertEqual(sorted_out(SKIP, PASS).new, ["main.a 'x'"])

    def test_when_it_fails_in_another_way(self):
        self.assertEqual(sorted_out(fail("-1\n+2"), fail("-1\n+3")).new, ["main.a 'x'"])

    def test_and_a_difference_in_a_dash_or_plus_of_the_answer_is_seen(self):
        self.assertEqual(sorted_out(fail("+--x"), fail("+--y")).new, ["main.a 'x'"])

    def test_when_one_way_lacks_it(self):
        self.assertEqual(verdict({"main.a": PASS}, {}, [], "plain").missing, ["main.a"])


class TheList(unittest.TestCase):
    def test_excuses_a_test_with_all_its_combinations_in_its_modes_only(self):
        known = "# why\nmain.a ps,ssl The reason is given."
        self.assertEqual(sorted_out(PASS, fail(""), known, "ssl").listed, [("main.a 'x'", "The reason is given.")])
        self.assertEqual(sorted_out(PASS, fail(""), known, "plain").new, ["main.a 'x'"])

    def test_excuses_by_the_proxy_s_manner_too(self):
        known = "main.a pool It repeats."
        self.assertEqual(sorted_out(PASS, fail(""), known, "plain+pool").listed, [("main.a 'x'", "It repeats.")])
        self.assertEqual(sorted_out(PASS, fail(""), known, "plain").new, ["main.a 'x'"])

    def test_excuses_one_combination_alone(self):
        self.assertEqual(sorted_out(PASS, fail(""), "main.a 'y' * Only there.").new, ["main.a 'x'"])

    def test_says_what_differs_no_more(self):
        self.assertEqual(sorted_out(PASS, PASS, "main.a * It did once.").healed, ["main.a 'x'"])

    def test_wants_a_reason_on_each_line(self):
        with self.assertRaises(BadList):
            known_differences("main.a *")


class TheReportOfTheSuite(unittest.TestCase):
    def test_is_read_with_combinations_workers_and_why_a_test_failed(self):
        report = """
main.select 'nm'                         w1 [ pass ]   1112
main.connect-abstract                    w2 [ skipped ]  Need Linux
main.ipv6                                w1 [ fail ]
        Test ended at 2026-11-25 03:53:23

mysqltest: At line 1: exec failed
main.mdev375                             w1 [ pass ]     11
main.old                                    [ disabled ]  MDEV-1
--------------------------------------------------------------------------
The servers were restarted 256 times
"""
        found = parse(report)
        self.assertEqual({test: one.word for test, one in found.items()}, {
            "main.select 'nm'": "pass", "main.connect-abstract": "skip", "main.ipv6": "fail", "main.mdev375": "pass",
            "main.old": "skip"})
        self.assertIn("mysqltest: At line 1: exec failed", found["main.ipv6"].text)
        self.assertNotIn("restarted", found["main.ipv6"].text)


if __name__ == "__main__":
    unittest.main()
