"""A helper module beside the script."""


class Line:
    def __init__(self, depth):
        self.depth, self.weight = depth, 0.0

    def compile(self):
        pass

    def loss(self, x, y):
        return sum((self.weight * a - b) ** 2 for a, b in zip(x, y)) / len(x) + 0.01 * self.depth

    def step(self, x, y, lr):
        before = self.loss(x, y)
        self.weight -= lr * sum(2 * a * (self.weight * a - b) for a, b in zip(x, y))
        return before
