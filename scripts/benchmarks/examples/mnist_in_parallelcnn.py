import parallelcnn as pc

seed, epochs, batch_size = 0, 8, 128

train_set, test_set = pc.load_data("mnist")
images, labels, n = train_set.images, train_set.labels, len(train_set) * 9 // 10
train_part = pc.Dataset(images[:n], labels[:n], classes=10)
validation_set = pc.Dataset(images[n:], labels[n:], classes=10, role="val")

layers = (
    pc.Conv2D(16, 5, stride=2, padding="same", bias=False),
    pc.BatchNorm(momentum=0.01, epsilon=1e-3, activation="relu"),
    pc.Conv2D(32, 3, padding="same", bias=False),
    pc.BatchNorm(momentum=0.01, epsilon=1e-3, activation="relu"),
    pc.MaxPool2D(2),
    pc.Dropout(0.25),
    pc.GlobalAvgPool2D(),
    pc.Dense(10),
)
network = pc.NetworkHandler(layers, train_set.input_shape, seed)

optimizer = pc.Adam(pc.Cosine(0.005), eps=1e-7)
stop = pc.EarlyStopping("val_accuracy", patience=2, restore_best=True)
options = {"callbacks": [stop], "seed": seed}
history = pc.train(network, train_part, validation_set, optimizer, epochs, batch_size, **options)
accuracy = pc.evaluate(network, test_set).accuracy
print(f"test accuracy {accuracy:.4f} after {len(history['val_accuracy'])} epochs")
