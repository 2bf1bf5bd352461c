def summarise(settings, folder):
    return {}


def write(found, out):
    pass


def markdown(found):
    return ""
