"""One run on several processes: networks in pieces, sums over ranks, errors that all ranks hear of."""
