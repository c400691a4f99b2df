"""A decoding process with a decoder of the tests' own: decoder_gone_wrong.py abort|exit|hang|eat|print."""

import os
import sys
import time

import numpy as np

from imaging.decoding import serve


def decode(task):
    planes, shape = task
    match sys.argv[1]:
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "eat":
            np.ones(1 << 32, np.uint8)
        case "print":
            os.write(sys.stdout.fileno(), b"= a library's own words")
    for plane in planes:
        yield np.full(shape, plane.index, np.int16)


serve(decode)
