"""scripts/bench_compare: its test against known values, and what its exit code says.

usage: bench_compare_test.py SCRIPT
"""
import importlib.machinery
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = sys.argv.pop(1)


def module():
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("bench_compare", SCRIPT)
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_compare", loader))
    loader.exec_module(found)
    return found


class MannWhitney(unittest.TestCase):
    def test_exact_counts_orders(self):
        p = module().mann_whitney
        # Apart altogether: two of the 20 (of the 252) orders are as extreme.
        self.assertAlmostEqual(p([1, 2, 3], [4, 5, 6]), 2 / 20)
        self.assertAlmostEqual(p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]), 2 / 252)
        # U = 2 of 3 and 3: 1 + 1 + 2 orders on each side.
        self.assertAlmostEqual(p([1, 2, 5], [3, 4, 6]), 2 * (1 + 1 + 2) / 20)
        self.assertEqual(p([1, 4], [2, 3]), 1)

    def test_ties_use_the_normal_distribution(self):
        p = module().mann_whitney
        self.assertEqual(p([1, 1, 1], [1, 1, 1]), 1)
        # By hand: U = 0.5, mean 4.5, variance 9/12·(7 − 6/30) = 5.1, z = 3.5/√5.1.
        self.assertAlmostEqual(p([1, 2, 3], [3, 4, 5]), math.erfc(3.5 / math.sqrt(5.1) / math.sqrt(2)))

    def test_both_sides_are_alike(self):
        p = module().mann_whitney
        a, b = [3, 1, 4, 15], [9, 2, 6, 5, 35]
        self.assertEqual(p(a, b), p(b, a))


class ExitCode(unittest.TestCase):
    def run_script(self, before, after, *options):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, times in (("before", before), ("after", after)):
                paths.append(os.path.join(folder, name))
                rows = [{"name": n, "run_name": n, "run_type": "iteration", "real_time": t,
                         "time_unit": "us"} for n, list_ in times.items() for t in list_]
                rows += [{"name": n + "_mean", "run_name": n, "run_type": "aggregate",
                          "real_time": 1e9, "time_unit": "us"} for n in times]
                with open(paths[-1], "w") as file:
                    json.dump({"context": {}, "benchmarks": rows}, file)
            done = subprocess.run([sys.executable, SCRIPT, *paths, *options], text=True,
                                  capture_output=True)
            return done.returncode, done.stdout + done.stderr

    LOW = [100 + 0.1 * i for i in range(10)]
    HIGH = [110.05 + 0.1 * i for i in range(10)]

    def test_slower_is_one(self):
        code, text = self.run_script({"x": self.LOW, "y": self.LOW}, {"x": self.HIGH, "y": self.LOW})
        self.assertEqual(code, 1, text)
        self.assertIn("2 benchmarks: 1 slower, 0 faster", text)

    def test_faster_is_zero(self):
        code, text = self.run_script({"x": self.HIGH}, {"x": self.LOW})
        self.assertEqual(code, 0, text)
        self.assertIn("1 benchmarks: 0 slower, 1 faster", text)

    def test_a_small_difference_is_none_however_certain(self):
        code, text = self.run_script({"x": self.LOW}, {"x": [t + 1 for t in self.LOW]})
        self.assertEqual(code, 0, text)
        code, text = self.run_script({"x": self.LOW}, {"x": [t + 1 for t in self.LOW]}, "--least", "0.5")
        self.assertEqual(code, 1, text)

    def test_noise_is_none_however_large(self):
        noisy = [100, 210, 95, 180, 102, 99, 260, 101, 98, 97]
        other = [200, 104, 96, 190, 103, 270, 94, 105, 93, 230]
        code, text = self.run_script({"x": noisy}, {"x": other})
        self.assertEqual(code, 0, text)

    def test_says_what_is_missing(self):
        code, text = self.run_script({"x": self.LOW, "gone": self.LOW}, {"x": self.LOW})
        self.assertEqual(code, 0, text)
        self.assertIn("only in", text)
        code, text = self.run_script({"x": self.LOW}, {"y": self.LOW})
        self.assertEqual(code, 2, text)
        self.assertIn("no benchmark in common", text)
        code, text = self.run_script({"x": [1.0, 2.0]}, {"x": [3.0, 4.0]})
        self.assertEqual(code, 2, text)
        self.assertIn("can never reach", text)


if __name__ == "__main__":
    unittest.main()
